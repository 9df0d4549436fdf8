"""Many requests at once without HTTP. Usage: python examples/embed_service.py BUNDLE"""

import asyncio
import sys
from pathlib import Path

from nemo_trt import AsyncEngine, SamplingParams


async def ask(engine: AsyncEngine, question: str) -> str:
    """One whole answer; others are computed in the same steps."""
    tokens = engine.tokenizer.chat([{"role": "user", "content": question}])
    params = SamplingParams(max_tokens=64)
    return "".join([event.text async for event in engine.generate(tokens, params)])


async def first_words(engine: AsyncEngine, prompt: str, count: int) -> str:
    """An answer broken off: leaving the block frees its slot at once."""
    text = ""
    async with engine.generate(prompt, SamplingParams(max_tokens=200)) as answer:
        async for event in answer:
            text += event.text
            if len(text.split()) > count:
                break
    return " ".join(text.split()[:count])


async def main() -> None:
    """Three questions and a text, side by side."""
    async with AsyncEngine.open(Path(sys.argv[1]), max_batch=4, max_seq_len=1024) as engine:
        *answers, words = await asyncio.gather(
            ask(engine, "What is the capital of France?"),
            ask(engine, "What is the capital of Japan?"),
            ask(engine, "What is the capital of Russia?"),
            first_words(engine, "The sun rises in the", 3),
        )
        for answer in answers:
            print(answer)
        print("The sun rises in the", words)


asyncio.run(main())
