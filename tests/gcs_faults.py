"""What goes wrong on the way to Cloud Storage, dealt from a seeded deck, so that a run of tests can be repeated; with a log.

A plan is sent to the proxy (`gcs_tls_proxy`), which asks the dealer at every request. Each client has its own deck: every kind as
often as the plan says, shuffled. A request that draws a card fails so many times in a row as the card says, and then gets
through, for good: a client that tries again as often as that must arrive, and whatever a client gives up on is its own doing.
"""

import hashlib
import json
import random
import re
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KINDS = {
    "503": "the service is unavailable",
    "429": "too many requests",
    "reset": "the connection is reset before the request gets there",
    "lost": "the request is carried out, and the connection reset before its answer",
    "cut": "the connection is reset in the middle of the body",
    "truncated": "the body ends half-way, in good order, though Content-Length promised more",
    "slow": "the body comes in small pieces",
}
OF_BODIES = {"cut", "truncated", "slow"}  # need an answer that has one
CLIENTS = ("google", "gdal", "tensorflow")
SMALLEST_BODY = 16  # bytes; a shorter one has no middle worth the name


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall go wrong for some clients.

    Attributes:
      kinds: keys of KINDS; none at all ends it.
      each: cards of each kind in the deck of a client.
      burst: a card lets a request fail 1 to so many times; one of OF_BODIES once.
      share: of the requests that draw a card, 0 to 1, while there are cards.
      match: only of requests whose "METHOD path" has this text, or one of these, separated by "|".
      clients: whose; the plans of others stay as they are.
      seed: of the decks and of the choice of requests.
      go_on: the decks stay as they are, but requests that have got through may draw again: for the next part of a long test.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    each: int = 1
    burst: int = 2
    share: float = 1.0
    match: str = ""
    clients: tuple[str, ...] = CLIENTS
    seed: int = 0
    go_on: bool = False

    def as_json(self) -> bytes:
        """For the proxy."""
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of the log: what went wrong, for whom, at which request."""

    kind: str
    client: str
    method: str
    path: str
    range: str | None


def log_of(path: Path, since: int = 0) -> list[Fault]:
    """The faults so far, from the `since`th on."""
    return [Fault(**json.loads(line)) for line in path.read_text().splitlines()[since:]]


def tally(faults: list[Fault]) -> dict[str, Counter[str]]:
    """How often each kind met each client."""
    found: dict[str, Counter[str]] = {client: Counter() for client in CLIENTS}
    for fault in faults:
        found[fault.client][fault.kind] += 1
    return found


class Dealer:
    """Deals faults to requests, by a plan that may be changed at any time.

    Args:
      log: gets a line for each fault.
    """

    def __init__(self, log: Path) -> None:
        self._lock = threading.Lock()
        self._lines = log.open("a", buffering=1)
        self._plans: dict[str, Plan] = {}
        self._decks: dict[str, list[tuple[str, int]]] = {}
        self._drawn: dict[str, tuple[str, int]] = {}  # by request: the kind, and how often it is still to fail
        self._asked: Counter[str] = Counter()

    def plan(self, plan: Plan) -> None:
        """Begins anew with other decks."""
        times = {kind: 1 if kind in OF_BODIES else plan.burst for kind in plan.kinds}
        with self._lock:
            self._drawn = {key: card for key, card in self._drawn.items() if key.split()[0] not in plan.clients}
            for client in () if plan.go_on else plan.clients:
                chance = random.Random(f"{plan.seed} {client}")
                deck = [(kind, chance.randint(1, times[kind])) for kind in plan.kinds for _ in range(plan.each)]
                chance.shuffle(deck)
                self._plans[client], self._decks[client] = plan, deck

    def deal(self, client: str, method: str, path: str, headers: Any, *, has_body: bool) -> str:
        """What befalls a request; empty for nothing.

        Args:
          client: one of CLIENTS.
          method, path: of the request.
          headers: of the request, a mapping.
          has_body: whether its answer is a success with a body of a size worth cutting. A request that has not been passed on
            yet has none: it is asked about again with its answer.
        """
        part = headers.get("Range") or headers.get("Content-Range")
        # A client that goes on where a body was cut asks for less, up to the same end: that is the same request.
        asked = re.sub(r"bytes[= ]\d+-", "", part or "")
        key = " ".join((client, method, re.sub(r"upload_id=[^&]*", "", path), asked))
        with self._lock:
            plan = self._plans.get(client)
            if plan is None or not any(text in f"{method} {path}" for text in plan.match.split("|")):
                return ""
            if key not in self._drawn:
                card = self._draw(plan, client, key, has_body=has_body)
                if card is None:
                    return ""
                self._drawn[key] = card
            kind, left = self._drawn[key]
            if not left or (kind in OF_BODIES) != has_body:
                return ""
            self._drawn[key] = kind, left - 1
            self._lines.write(json.dumps(asdict(Fault(kind, client, method, path, part))) + "\n")
            return kind

    def _draw(self, plan: Plan, client: str, key: str, *, has_body: bool) -> tuple[str, int] | None:
        deck = self._decks[client]
        fitting = [card for card in deck if (card[0] in OF_BODIES) == has_body]
        if not fitting:
            return None
        self._asked[key] += 1
        number = hashlib.sha256(f"{plan.seed} {key} {self._asked[key]}".encode()).digest()
        if int.from_bytes(number[:4]) / 2**32 >= plan.share:
            return None
        deck.remove(fitting[0])
        return fitting[0]
