"""What the shop sells: names, and the theme that each belongs to; the model counts them from 0."""

ARTICLES = (
    ("Tent", "camping"),
    ("Sleeping bag", "camping"),
    ("Headlamp", "camping"),
    ("Gas stove", "camping"),
    ("Saucepan", "kitchen"),
    ("Chef's knife", "kitchen"),
    ("Rolling pin", "kitchen"),
    ("Apron", "kitchen"),
    ("Fountain pen", "desk"),
    ("Notebook", "desk"),
    ("Desk lamp", "desk"),
    ("Stapler", "desk"),
    ("Watering can", "garden"),
    ("Spade", "garden"),
    ("Seeds", "garden"),
    ("Gloves", "garden"),
)
