"""Small tasks with exact answers, made from a seed: sums, comparisons, extraction, classification, facts.

Every task is one question whose right answer is known, so that a check by equality decides who was right. The same
number of tasks and the same seed give the same tasks on every machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

NAMES = ("Maria", "John", "Fatima", "Chen", "Olga", "Peter", "Amina", "Lucas", "Ingrid", "Kofi", "Nadia", "Tom")
CITIES = (
    "Lisbon",
    "Oslo",
    "Cairo",
    "Toronto",
    "Madrid",
    "Tokyo",
    "Berlin",
    "Lima",
    "Dublin",
    "Seoul",
    "Vienna",
    "Rome",
)
GOODS = ("chairs", "lamps", "books", "plates", "shirts", "tables", "clocks", "boots", "pens", "bags")
MEMBERS = {
    "animal": ("horse", "tiger", "rabbit", "camel", "goat", "wolf", "whale", "monkey"),
    "fruit": ("apple", "banana", "cherry", "mango", "grape", "melon", "papaya", "pear"),
    "tool": ("hammer", "saw", "drill", "wrench", "shovel", "axe", "rake", "pliers"),
    "country": ("Norway", "Brazil", "Kenya", "Japan", "Canada", "Egypt", "Spain", "Peru"),
    "colour": ("red", "green", "purple", "yellow", "grey", "white", "black", "blue"),
}
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Norway": "Oslo", "Spain": "Madrid",
    "Germany": "Berlin", "Peru": "Lima", "Ireland": "Dublin", "Portugal": "Lisbon", "Austria": "Vienna",
    "Greece": "Athens", "Russia": "Moscow", "China": "Beijing", "Kenya": "Nairobi", "Cuba": "Havana",
    "Poland": "Warsaw", "Hungary": "Budapest", "Canada": "Ottawa", "Australia": "Canberra", "Turkey": "Ankara",
    "Finland": "Helsinki", "Thailand": "Bangkok", "Chile": "Santiago",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "open": "closed", "day": "night", "fast": "slow", "wet": "dry",
    "young": "old", "early": "late", "rich": "poor", "left": "right", "strong": "weak", "full": "empty",
    "hard": "soft", "light": "dark", "happy": "sad", "true": "false", "high": "low", "first": "last", "win": "lose",
}  # fmt: skip
PRAISE = ("wonderful", "friendly", "clean", "excellent", "helpful", "delicious", "charming", "perfect")
BLAME = ("dirty", "rude", "broken", "awful", "noisy", "cold and tasteless", "disappointing", "far too expensive")
REVIEWED = ("The room", "The meal", "The waiter", "The concert", "This phone", "The hotel", "The film", "The service")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
TOPICS = {
    "sport": ("The goalkeeper saved a penalty in the last minute.", "She won the marathon in record time.",
              "The team signed a new striker.", "He broke the record in the long jump.",
              "The final set of the match lasted two hours.", "The coach praised his young players."),
    "weather": ("Heavy rain is expected on Friday.", "The storm brought snow to the hills.",
                "It will stay sunny and warm all week.", "Thick fog closed the roads this morning.",
                "The heat wave ends on Sunday.", "Strong winds are blowing from the north."),
    "food": ("Add the onions and fry them in butter.", "The soup needs more salt and pepper.",
             "Bake the bread for forty minutes.", "This cake is made with almonds and honey.",
             "Boil the rice and serve it with beans.", "The cheese is kept for a year in a cellar."),
    "money": ("The bank raised its interest rate again.", "Shares fell after the company reported a loss.",
              "He paid back the loan within a year.", "The tax on petrol will rise in May.",
              "Her salary went up by five percent.", "The price of gold reached a new high."),
}  # fmt: skip

ONE_NUMBER, ONE_WORD, YES_OR_NO = (
    "Answer with the number only.", "Answer with one word only.", "Answer with yes or no only."
)  # fmt: skip

EXAMPLES = (
    (f"What is 2 + 3? {ONE_NUMBER}", "5"),
    (f"Is 7 greater than 9? {YES_OR_NO}", "no"),
    (f'"She read a book in Paris." Which city did she read in? {ONE_WORD}', "Paris"),
    (f'Is this review positive or negative? "I loved it." {ONE_WORD}', "positive"),
)
"""They stand before every task and show a model what an answer looks like. None of them is a task."""


@dataclass(frozen=True)
class Task:
    """A question with its right answer.

    kind: what sort of task it is. choices: the only possible answers, where there are some; else none, and the answer
    is a number or a word.
    """

    kind: str
    prompt: str
    right: str
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> str | None:
        """The final answer in what a model wrote, in lower case; None where there is none.

        It is read from the first line that is not empty: of several choices the first that is named, else the last
        number, else the last word. So "The capital of France is Paris." is read as "paris".
        """
        lines = text.strip().splitlines()
        line = lines[0].lower() if lines else ""
        if self.choices:
            found = re.findall("|".join(rf"\b{re.escape(choice.lower())}\b" for choice in self.choices), line)
            return str(found[0]) if found else None
        number = self.right.lstrip("-").isdigit()
        found = re.findall(r"-?\d+" if number else r"[^\W\d_]+", line.replace(",", "") if number else line)
        return str(found[-1]) if found else None

    def is_right(self, text: str) -> bool:
        """Whether what a model wrote is the right answer."""
        return self.read(text) == self.right.lower()


def make_tasks(n: int, seed: int = 1) -> list[Task]:
    """N different tasks of all kinds in turn, as long as a kind has new ones, in random order.

    Raises ValueError where there are no n different tasks.
    """
    draw = random.Random(seed)
    tasks: dict[str, Task] = {}
    shown = {question for question, _ in EXAMPLES}
    for attempt in range(100 * n):
        if len(tasks) == n:
            break
        task = KINDS[attempt % len(KINDS)](draw)
        if task.prompt not in shown:
            tasks.setdefault(task.prompt, task)
    if len(tasks) < n:
        raise ValueError(f"{n} tasks were asked for, and only {len(tasks)} different ones were found; ask for fewer")
    made = list(tasks.values())
    draw.shuffle(made)
    return made


def _sum(draw: random.Random) -> Task:
    largest = draw.choice((4, 9, 20, 99))
    a, b = draw.randint(1, largest), draw.randint(1, largest)
    return Task("sum", f"What is {a} + {b}? {ONE_NUMBER}", str(a + b))


def _product(draw: random.Random) -> Task:
    a, b = draw.randint(2, 12), draw.randint(2, draw.choice((5, 12, 40)))
    return Task("product", f"What is {a} times {b}? {ONE_NUMBER}", str(a * b))


def _next(draw: random.Random) -> Task:
    if draw.random() < 0.5:
        number = draw.randint(1, draw.choice((20, 100, 1000)))
        return Task("next", f"Which number comes right after {number}? {ONE_NUMBER}", str(number + 1))
    row = draw.choice((DAYS, MONTHS))
    place = draw.randrange(len(row) - 1)
    what = "day" if row is DAYS else "month"
    return Task("next", f"Which {what} comes right after {row[place]}? {ONE_WORD}", row[place + 1])


def _larger(draw: random.Random) -> Task:
    a, b = draw.sample(range(1, draw.choice((10, 100, 1000))), 2)
    return Task("larger", f"Is {a} greater than {b}? {YES_OR_NO}", "yes" if a > b else "no", ("yes", "no"))


def _member(draw: random.Random) -> Task:
    kind, other = draw.sample(sorted(MEMBERS), 2)
    thing = draw.choice(MEMBERS[draw.choice((kind, other))])
    article = "an" if kind == "animal" else "a"
    right = "yes" if thing in MEMBERS[kind] else "no"
    return Task("member", f'Is "{thing}" {article} {kind}? {YES_OR_NO}', right, ("yes", "no"))


def _pick(draw: random.Random) -> Task:
    kind, other = draw.sample(sorted(MEMBERS), 2)
    right = draw.choice(MEMBERS[kind])
    choices = [right, *draw.sample(MEMBERS[other], draw.choice((1, 2, 4)))]
    draw.shuffle(choices)
    article = "an" if kind == "animal" else "a"
    return Task("pick", f"Which of these is {article} {kind}: {', '.join(choices)}? {ONE_WORD}", right, tuple(choices))


def _city(draw: random.Random) -> Task:
    name, other = draw.sample(NAMES, 2)
    right, wrong = draw.sample(CITIES, 2)
    n, goods, year = draw.randint(2, 90), draw.choice(GOODS), draw.randint(1990, 2025)
    story = draw.choice((
        f"{n} {goods} were sent to {name} in {right}.",
        f"In {year} {name} ordered {n} {goods} from {wrong}; they were sent to {right}.",
        f"{other} of {wrong} sold {n} {goods} to {name}, who lives in {right}.",
    ))  # fmt: skip
    return Task("city", f'"{story}" Which city did the {goods} go to? {ONE_WORD}', right)


def _year(draw: random.Random) -> Task:
    first, second = sorted(draw.sample(range(1900, 2025), 2))
    what, city = draw.choice(("bridge", "museum", "school", "tower", "library")), draw.choice(CITIES)
    story, right = draw.choice((
        (f"The {what} in {city} was built in {first}.", first),
        (f"The {what} in {city} was built in {first} and closed in {second}.", first),
        (f"After the fire of {first}, a new {what} was built in {city} in {second}.", second),
    ))  # fmt: skip
    return Task("year", f'"{story}" In which year was the {what} built? {ONE_NUMBER}', str(right))


def _mood(draw: random.Random) -> Task:
    good, bad, (first, second) = draw.choice(PRAISE), draw.choice(BLAME), draw.sample(REVIEWED, 2)
    review, right = draw.choice((
        (f"{first} was {good}.", "positive"),
        (f"{first} was {bad}.", "negative"),
        (f"I expected {first.lower()} to be {bad}, but it was {good}.", "positive"),
        (f"Everybody says {first.lower()} is {good}. I found it {bad}.", "negative"),
        (f"{second} was not {good}, and {first.lower()} was {bad}.", "negative"),
    ))  # fmt: skip
    question = f'Is this review positive or negative? "{review}" {ONE_WORD}'
    return Task("mood", question, right, ("positive", "negative"))


def _topic(draw: random.Random) -> Task:
    right = draw.choice(sorted(TOPICS))
    choices = [right, *draw.sample(sorted(set(TOPICS) - {right}), draw.choice((1, 3)))]
    draw.shuffle(choices)
    asked = f"{', '.join(choices[:-1])} or {choices[-1]}"
    return Task("topic", f'What is this about: {asked}? "{draw.choice(TOPICS[right])}" {ONE_WORD}', right,
                tuple(choices))  # fmt: skip


def _capital(draw: random.Random) -> Task:
    country = draw.choice(sorted(CAPITALS))
    if draw.random() < 0.5:
        return Task("capital", f"What is the capital of {country}? {ONE_WORD}", CAPITALS[country])
    return Task("capital", f"{CAPITALS[country]} is the capital of which country? {ONE_WORD}", country)


def _opposite(draw: random.Random) -> Task:
    word, right = draw.choice(sorted(OPPOSITES.items()))
    if draw.random() < 0.5:
        word, right = right, word
    return Task("opposite", f'What is the opposite of "{word}"? {ONE_WORD}', right)


KINDS: tuple[Callable[[random.Random], Task], ...] = (
    _sum, _product, _next, _larger, _member, _pick, _city, _year, _mood, _topic, _capital, _opposite,
)  # fmt: skip
