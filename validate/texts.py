"""The texts that bundles are validated on, written for this project. None calibrates FP8."""

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

MORE = (
    "The lighthouse keeper kept two diaries. In the first he wrote what the regulations asked for: "
    "wind, visibility, ships. In the second he wrote what he had seen while looking for those "
    "things, and it is the second that the museum bought.",
    "Glass is neither quite a solid nor a very slow liquid. When molten sand cools quickly its "
    "molecules have no time to arrange themselves in a crystal, so they stop where they are, "
    "disordered like a liquid and rigid like a stone.",
    "Under the agreement, the supplier delivers the parts within ten working days of each order. "
    "If a delivery is late by more than five days, the customer may cancel it without cost.",
    "def binary_search(items, target):\n    low, high = 0, len(items) - 1\n    while low <= high:\n"
    "        middle = (low + high) // 2\n        if items[middle] == target:\n            return "
    "middle\n        if items[middle] < target:\n            low = middle + 1\n        else:\n"
    "            high = middle - 1\n    return None\n",
    "const response = await fetch(`/api/users/${id}`);\nif (!response.ok) {\n  throw new Error("
    "`request failed: ${response.status}`);\n}\nconst user = await response.json();\nconsole.log("
    "user.name);\n",
    "CREATE TABLE invoices (\n  id INTEGER PRIMARY KEY,\n  customer_id INTEGER NOT NULL REFERENCES "
    "customers(id),\n  total NUMERIC(10, 2) NOT NULL,\n  paid BOOLEAN DEFAULT FALSE\n);\n",
    "Let x be the number of adults and y the number of children. Then x + y = 50 and 12x + 7y = "
    "475. From the first, y = 50 - x, so 12x + 350 - 7x = 475 and 5x = 125. There were 25 adults.",
    "A circle of radius 3 has the area 9 pi, about 28.27. The square around it has the area 36, so "
    "the circle covers pi / 4, or 78.5 per cent, of the square.",
    "To convert 98.6 degrees Fahrenheit to Celsius, subtract 32 and multiply by 5/9: 66.6 * 5 / 9 "
    "= 37. The other way round, multiply by 9/5 and add 32.",
    '{"sensor": "A-17", "unit": "celsius", "readings": [{"t": "06:00", "value": 4.2}, {"t": '
    '"07:00", "value": 5.1}, {"t": "08:00", "value": 6.8}], "battery": 0.87, "ok": true}',
    "Packing list:\n1. Tent and pegs\n2. Two sleeping bags\n3. Stove, gas, matches\n"
    "4. Rain jackets\n5. Map and compass\n6. First aid kit\n7. Food for three days\n",
    "product,quantity,price\npencil,120,0.45\nnotebook,40,2.80\neraser,75,0.60\nruler,30,1.25\n",
    "Le vieux pont a été fermé pendant l'hiver, et les habitants de l'autre rive ont pris "
    "l'habitude de traverser en barque pour acheter leur pain.",
    "Der Bäcker an der Ecke verkauft seit drei Generationen dasselbe Roggenbrot, und wer nach acht "
    "Uhr kommt, findet die Regale meistens leer.",
    "La profesora explicó que los volcanes no duermen: respiran despacio, y a veces pasan siglos "
    "antes de que alguien los oiga.",
    "春天来了，河边的柳树发了芽，孩子们放学以后在草地上放风筝。",
    "User: My plant's leaves are turning yellow. What should I do?\nAssistant: First check the "
    "soil. If it is wet two fingers deep, water less and let it dry; yellow leaves are most often "
    "a sign of too much water. If it is dry, water it well and move it out of the sun for a week.",
    "User: Explain what an interest rate is.\nAssistant: It is the price of borrowing money, "
    "told as a share of the sum for each year. If you borrow 1,000 at five per cent, you pay 50.",
)
HELD_OUT = PROMPTS + MORE
"""Every text, for what is judged by its mean: perplexity, agreement and divergence."""
