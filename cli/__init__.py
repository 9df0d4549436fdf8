"""The command line: parse, call one function of a stage, print."""
