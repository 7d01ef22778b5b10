"""What the session scripts of Python clients have in common: arguments, events, and the calls that they are told to make.

A script is started with --host=H --port=P --tls=direct|starttls --ca=FILE --jid=J --token=T and logs in. It prints
{"event":"online","jid":…}, {"event":"resumed"} when a lost stream was resumed, {"event":"channel","number":…,"payload":…}
for each payload of a channel, {"event":"refused","condition":…} when the server refused the login and {"event":"untrusted"}
when its certificate is not of that CA; after either it ends with 1.
It reads lines {"call":NAME,"with":[…]} and answers each with {"event":"returned","call":NAME,"value":…} or
{"event":"failed","call":NAME,"error":…}; README.md has the calls.
"""

import argparse
import json
import sys
import threading
from typing import Callable

CHANNELS = "urn:campanile:channel:1"


class Refused(Exception):
    """An error stanza, by its condition."""


def say(event: str, **members) -> None:
    print(json.dumps({"event": event, **members}, ensure_ascii=False), flush=True)


def returned(call: str, value) -> None:
    say("returned", call=call, value=value)


def failed(call: str, error: object) -> None:
    say("failed", call=call, error=str(error))


def read_arguments() -> argparse.Namespace:
    """All of them are demanded. `--name=value` alone: a token may begin with a dash."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ["host", "ca", "jid", "token"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--tls", required=True, choices=["direct", "starttls"])
    return parser.parse_args()


def read_calls(hand_over: Callable[[dict], None]) -> None:
    """Hands over each call from a thread of its own, until the input ends."""

    def read() -> None:
        for line in sys.stdin:
            hand_over(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
