"""Writes train.jsonl, validation.jsonl and held_out.jsonl: what people say at home, and the command that they mean.

    python -m pegboard_sft.demo.make_data FOLDER

Everything follows from one seed. A held-out item never occurs in the training rows: two phrasings of every kind of wish are kept out
of training altogether, and so are some places for every phrasing that is trained.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOMS = (
    "kitchen", "bedroom", "living room", "bathroom", "nursery", "study", "garage", "attic", "den", "dining room", "guest room", "hallway",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "purple", "orange", "pink", "white", "amber")
STYLES = ("jazz", "disco", "opera", "blues", "techno", "folk", "reggae", "swing", "piano", "rock")
HOURS = ("twelve", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody may want. phrasings: `{room}` and `{value}` are filled in; the last two are only ever held out.

    answer: the settings of the room for a spoken value. values: the spoken values, ("",) where there is none.
    weight: its share of the training rows.
    """

    phrasings: tuple[str, ...]
    answer: Callable[[str], dict[str, str | int]]
    values: tuple[str, ...] = ("",)
    weight: int = 2


def clock(spoken: str) -> str:
    """Return the time of "half past six", "quarter to seven" or "eight" in the morning: "06:30", "06:45", "08:00"."""
    *before, hour = spoken.split()
    minutes = {"": 0, "half past": 30, "quarter past": 15, "quarter to": -15}[" ".join(before)]
    total = HOURS.index(hour) * 60 + minutes
    return f"{total // 60:02d}:{total % 60:02d}"


WISHES: dict[str, Wish] = {
    "lights on": Wish(
        (
            "Turn on the lights in the {room}.",
            "Lights on in the {room}, please.",
            "I can't see a thing in the {room}.",
            "It is pitch dark in the {room}.",
            "Switch the {room} lights on.",
            "Could you light up the {room}?",
            "I keep bumping into things in the {room}.",
            "The {room} is too dark to read in.",
            "Make it bright in the {room}.",
            "I need to find my keys in the dark {room}.",
        ),
        lambda _: {"lights": "on"},
    ),
    "lights off": Wish(
        (
            "Turn off the lights in the {room}.",
            "Lights out in the {room}.",
            "Nobody is in the {room}, so save the electricity there.",
            "Somebody left the lamp burning in the {room}.",
            "Switch the {room} lights off, please.",
            "It is much too bright in the {room}.",
            "I want it completely dark in the {room}.",
            "Kill the lights in the {room}.",
            "The lamps in the {room} can go out now.",
            "We don't need any light in the {room}.",
        ),
        lambda _: {"lights": "off"},
    ),
    "lights percent": Wish(
        (
            "Dim the {room} lights to {value} percent.",
            "Set the lights in the {room} to {value}%.",
            "Lights at {value} percent in the {room}.",
            "Bring the {room} lamps to {value} percent.",
            "I would like {value}% light in the {room}.",
            "Make the lights in the {room} {value} percent bright.",
        ),
        lambda value: {"lights": int(value)},
        tuple(str(n) for n in range(5, 100, 5)),
    ),
    "lights colour": Wish(
        (
            "Make the {room} {value}.",
            "Turn the lights in the {room} {value}.",
            "Give me {value} light in the {room}.",
            "I am in the mood for a lot of {value} in the {room}.",
            "Paint the {room} {value} with the lamps.",
            "Let the {room} glow in {value}.",
        ),
        lambda value: {"lights": value},
        COLOURS,
    ),
    "heating up": Wish(
        (
            "It is freezing in the {room}.",
            "Warm up the {room}, please.",
            "My feet are like ice here in the {room}.",
            "Turn the heating up in the {room}.",
            "I am shivering in the {room}.",
            "Make the {room} a little warmer.",
            "The {room} feels like a fridge.",
            "Brr, the {room} is chilly!",
            "I need two jumpers to sit in the {room}.",
            "Why is it so cold in the {room}?",
        ),
        lambda _: {"heating": "up"},
    ),
    "heating down": Wish(
        (
            "It is boiling in the {room}.",
            "Cool down the {room}, please.",
            "I am sweating in the {room}.",
            "Turn the heating down in the {room}.",
            "The {room} feels like an oven.",
            "Make the {room} a little cooler.",
            "We are melting in the {room}!",
            "The radiator in the {room} is far too hot.",
            "The {room} is like a sauna.",
            "Why is it so hot in the {room}?",
        ),
        lambda _: {"heating": "down"},
    ),
    "heating degrees": Wish(
        (
            "Set the {room} to {value} degrees.",
            "Heat the {room} to {value} degrees, please.",
            "I want {value} degrees in the {room}.",
            "Keep the {room} at {value} degrees.",
            "Make it {value} degrees in the {room}.",
            "The {room} should be at {value} degrees.",
        ),
        lambda value: {"heating": int(value)},
        tuple(str(n) for n in range(15, 26)),
    ),
    "music": Wish(
        (
            "Play some {value} in the {room}.",
            "Put on {value} in the {room}, please.",
            "I feel like {value} in the {room}.",
            "Could we have a bit of {value} in the {room}?",
            "Start the {value} playlist in the {room}.",
            "Let's dance to {value} in the {room}!",
            "I would love to hear {value} in the {room}.",
            "Fill the {room} with {value}.",
        ),
        lambda value: {"music": value},
        STYLES,
        3,
    ),
    "music off": Wish(
        (
            "Stop the music in the {room}.",
            "Quiet in the {room}, please.",
            "That song in the {room} has to end.",
            "I can't hear myself think in the {room}.",
            "Turn that noise off in the {room}.",
            "Silence in the {room}!",
            "No more music in the {room}.",
            "The speakers in the {room} are driving me mad.",
        ),
        lambda _: {"music": "off"},
    ),
    "blinds closed": Wish(
        (
            "Close the blinds in the {room}.",
            "The sun is in my eyes in the {room}.",
            "The neighbours can look into the {room}.",
            "Pull the blinds down in the {room}, please.",
            "I would like some privacy in the {room}.",
            "Shut the {room} blinds.",
            "The sun is blinding me in the {room}.",
            "Nobody should see into the {room}.",
        ),
        lambda _: {"blinds": "closed"},
    ),
    "blinds open": Wish(
        (
            "Open the blinds in the {room}.",
            "Let the sun into the {room}.",
            "I want to look outside from the {room}.",
            "Pull the blinds up in the {room}, please.",
            "Raise the {room} blinds.",
            "Some daylight in the {room} would be nice.",
            "Let some sunshine into the {room}.",
            "I want to see the garden from the {room}.",
        ),
        lambda _: {"blinds": "open"},
    ),
    "vacuum": Wish(
        (
            "Vacuum the {room}.",
            "There are crumbs all over the {room}.",
            "The dog has shed hair all over the {room}.",
            "Clean the floor in the {room}, please.",
            "Send the robot to the {room}.",
            "The floor of the {room} is filthy.",
            "The carpet in the {room} is full of dust.",
            "I spilled cereal on the floor of the {room}.",
        ),
        lambda _: {"vacuum": "start"},
    ),
    "alarm": Wish(
        (
            "Wake me at {value} in the {room}.",
            "I have to get up at {value}, I sleep in the {room}.",
            "Set an alarm in the {room} for {value}.",
            "Please ring at {value} in the {room}.",
            "Alarm at {value} in the {room}, please.",
            "Don't let me sleep past {value} in the {room}.",
        ),
        lambda value: {"alarm": clock(value)},
        tuple(
            f"{part} {hour}".strip()
            for part in ("", "half past", "quarter past", "quarter to")
            for hour in ("five", "six", "seven", "eight", "nine")
        ),
        3,
    ),
    "film": Wish(
        (
            "Movie night in the {room}!",
            "We are about to watch a film in the {room}.",
            "Get the {room} ready for a movie.",
            "Time for a film in the {room}.",
            "Let's turn the {room} into a cinema.",
            "Popcorn is ready, start the cinema in the {room}.",
        ),
        lambda _: {"lights": 10, "blinds": "closed", "music": "off"},
    ),
    "bedtime": Wish(
        (
            "Bedtime in the {room}.",
            "Good night from the {room}.",
            "We are going to sleep in the {room}.",
            "The baby is falling asleep in the {room}.",
            "Time to sleep in the {room}.",
            "Sweet dreams in the {room}.",
        ),
        lambda _: {"lights": "off", "blinds": "closed"},
    ),
    "morning": Wish(
        (
            "Good morning in the {room}!",
            "Rise and shine in the {room}.",
            "We are getting up in the {room}.",
            "Start the day in the {room}.",
            "A new day begins in the {room}.",
            "Morning has come to the {room}.",
        ),
        lambda _: {"lights": "on", "blinds": "open"},
    ),
}


def row(wish: Wish, phrasing: str, room: str, value: str) -> dict[str, str]:
    """Return one row: what is said, and the command as JSON."""
    command = {"room": room, **wish.answer(value)}
    return {"instruction": phrasing.format(room=room, value=value), "response": json.dumps(command)}


def rows(seed: int, train: int, validation: int, held_out: int) -> tuple[list[dict[str, str]], ...]:
    """Return the three lists of rows, of the given lengths, disjoint in what is said."""
    draw = random.Random(seed)
    kept_out: list[dict[str, str]] = []
    trained: list[dict[str, str]] = []
    for wish in WISHES.values():
        known, unseen = wish.phrasings[:-2], wish.phrasings[-2:]
        # Two places for every phrasing are never trained.
        places = {phrasing: draw.sample(ROOMS, 2) for phrasing in known}
        others = {phrasing: [room for room in ROOMS if room not in places[phrasing]] for phrasing in known}
        trained += _drawn(draw, wish, others, 60 * wish.weight)
        kept_out += _drawn(draw, wish, {phrasing: list(ROOMS) for phrasing in unseen}, 4)
        kept_out += _drawn(draw, wish, places, 4)
    draw.shuffle(trained)
    draw.shuffle(kept_out)
    parts = trained[:train], kept_out[held_out : held_out + validation], kept_out[:held_out]
    if [len(part) for part in parts] != [train, validation, held_out]:
        raise ValueError(f"only {len(trained)} rows to train on and {len(kept_out)} to hold out can be made")
    return parts


def _drawn(draw: random.Random, wish: Wish, rooms: Mapping[str, list[str]], count: int) -> list[dict[str, str]]:
    """Return up to `count` different rows. rooms: the places that each phrasing may speak of."""
    every = [
        row(wish, phrasing, room, value) for phrasing in rooms for room in rooms[phrasing] for value in wish.values
    ]
    return draw.sample(every, min(count, len(every)))


def write(folder: Path, seed: int = 1) -> Iterator[Path]:
    """Write the three files and yield their paths."""
    for name, part in zip(("train", "validation", "held_out"), rows(seed, 600, 48, 64), strict=True):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in part), encoding="utf-8")
        yield path


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
