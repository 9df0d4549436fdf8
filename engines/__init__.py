"""Engines: sessions that run a bundle, the Runner over them, sampling and tokenisers. No torch."""
