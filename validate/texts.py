"""The texts that bundles are validated on, written for this project."""

PROMPTS = (
    "The harbour was quiet that morning. A single fishing boat came in under grey clouds, and the "
    "woman at the wheel raised her hand to the old man who mended nets on the pier. He had asked "
    "her for weeks whether the herring were back, and today, at last, she nodded and laughed.",
    "def moving_average(values, width):\n    total = sum(values[:width])\n    yield total / width\n"
    "    for i in range(width, len(values)):\n        total += values[i] - values[i - width]\n"
    "        yield total / width\n",
    "If a train travels 180 kilometres in 2 hours and then 120 kilometres in 1 hour, its average "
    "speed over the whole journey is 300 / 3 = 100 kilometres per hour. In general the average is "
    "the total distance divided by the total time, not the mean of the two speeds.",
    '{"order": 1042, "customer": {"name": "Ada", "city": "Lyon"}, "items": [{"sku": "T-7", '
    '"count": 2, "price": 14.5}, {"sku": "K-1", "count": 1, "price": 3.0}], "paid": true}',
    "La bibliothèque ferme à dix-huit heures. — Entschuldigung, wann fährt der nächste Zug nach "
    "Bremen? — El martes llovió toda la tarde. — 今日はとても良い天気ですね。",
    "User: Which planet has the most moons?\nAssistant: Saturn, with well over a hundred known.",
)
