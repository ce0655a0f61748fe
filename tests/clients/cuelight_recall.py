"""Long prompts with a fact in them, and what the shipped model answers when all of the prompt's KV is in its place."""

ANIMALS = ["fox", "bear", "owl", "rabbit", "mouse", "cat", "dog", "horse"]
THINGS = ["lantern", "key", "map", "bell", "coin", "kite", "book", "ladder"]
PLACES = ["meadow", "river", "forest", "village", "hill", "lake"]
NAMES = ["Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Iris", "Jonas", "Kira", "Leo"]
SECRETS = ["maple", "copper", "velvet", "harvest", "pepper", "silver", "falcon", "ginger", "marble", "thunder", "walnut",
           "ribbon", "cactus", "lagoon", "ember", "saffron", "puzzle", "violet", "anchor", "meteor"]


def story(rng):
    animal, thing, (name, friend), (place, other) = (rng.choice(ANIMALS), rng.choice(THINGS), rng.sample(NAMES, 2),
                                                     rng.sample(PLACES, 2))
    helper = rng.choice([one for one in ANIMALS if one != animal])
    return " ".join([
        rng.choice([f"Once upon a time, a brave {animal} named {name} lived near the {place}.",
                    f"Long ago, by the old {place}, there was a {animal} whose name was {name}."]),
        rng.choice([f"One day {name} saw a red {thing} lying by the road.",
                    f"In the evening {name} heard a noise and found a green {thing}."]),
        rng.choice([f"\"What a fine {thing}!\" said {name}.", f"{name} looked at the {thing} for a long time."]),
        rng.choice([f"{name} carried it all the way to the {other}.",
                    f"A cold wind blew, but {name} went on to the {other}."]),
        f"On the way, {name} met a {helper} named {friend}.",
        rng.choice([f"\"I can show you how it works,\" said {friend}.",
                    f"\"Please help me,\" said {friend}. \"I need a {thing} to get home.\""]),
        rng.choice([f"{name} gave the {thing} to {friend} and smiled.", f"{name} and {friend} took turns with the {thing}."]),
        rng.choice([f"Together they used the {thing} and found the way.",
                    "They shared some bread and talked until the moon came up."]),
        rng.choice([f"From that day on, {name} and {friend} were the best of friends.",
                    f"And so the {animal} learned that sharing is better than keeping."])])


def recall(rng, stories):
    """A message with a fact somewhere among so many stories, and the answer to its question."""
    parts = [story(rng) for _ in range(stories)]
    secret = rng.choice(SECRETS)
    parts.insert(rng.randint(0, stories), f"The secret word is {secret}.")
    return "Read this.\n" + "\n".join(parts) + "\nWhat is the secret word?", f"The secret word is {secret}."
