#!/usr/bin/env python3
"""Makes every call of PyPI's xmpush-python, unchanged. It speaks the protocol of ../drive.js; calls are `Class.method`.

A message is given as {"message":[[setter, argument, …], …]}; {"message":null} is the one of the call before, with whatever the
package has left in it. A line may have "named", an object of arguments by name. What failed is answered with what the package
logged, too: it keeps the server's code from its caller.
"""

import argparse
import collections
import collections.abc
import json
import logging
import os
import sys
from urllib.parse import urlsplit

# Gone from Python 3.10 on, and the package is older.
if not hasattr(collections, "Iterable"):
    collections.Iterable = collections.abc.Iterable

from xmpush.APISender import APISender
from xmpush.APISubscribe import APISubscribe
from xmpush.APITools import APITools
from xmpush.base.APIConstants import Constants
from xmpush.base.APIError import APIError
from xmpush.base.APIMessage import PushMessage


def say(event: str, **members) -> None:
    print(json.dumps({"event": event, **members}, ensure_ascii=False), flush=True)


def methods(of: type) -> list[str]:
    return [name for name, value in vars(of).items() if callable(value) and not name.startswith("_")]


class Messages:
    """The messages that sends are given."""

    def __init__(self):
        self.last = None

    def meant(self, argument):
        if not isinstance(argument, dict) or "message" not in argument:
            return argument
        if argument["message"] is not None:
            message = PushMessage()
            for setter, *given in argument["message"]:
                if setter not in ("message_dict", "message_dict_ios"):
                    getattr(message, setter)(*given)
            ios = ["message_dict_ios"] in argument["message"]
            self.last = message.message_dict_ios() if ios else message.message_dict()
        return self.last


class Log(logging.Handler):
    """What the package logs as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def connect(arguments: argparse.Namespace) -> dict:
    base = urlsplit(arguments.base)
    Constants.host = base.netloc
    if base.scheme == "http":
        Constants.use_http()
    messages = Messages()
    # Messages are made where they are arguments.
    calls = {f"PushMessage.{name}": None for name in methods(PushMessage)}
    for of in (APISender, APISubscribe, APITools):
        # What it is given besides the secret goes along as a header.
        made = of(arguments.secret, "an audit token")
        for name in methods(of):
            call = getattr(made, name)
            calls[f"{of.__name__}.{name}"] = lambda *given, _call=call, **named: _call(*map(messages.meant, given), **named)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("base", "secret", "package"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--ca")
    arguments = parser.parse_args()
    if arguments.ca:
        # The package has no option for a CA; OpenSSL has this one for the default ones.
        os.environ["SSL_CERT_FILE"] = arguments.ca
    # The package would go through a proxy even to loopback.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "all_proxy", "ALL_PROXY"):
        os.environ.pop(name, None)
    log = Log()
    logging.getLogger().addHandler(log)
    calls = connect(arguments)
    say("ready", calls=list(calls))
    for line in sys.stdin:
        asked = json.loads(line)
        call = asked["call"]
        log.lines.clear()
        try:
            value = calls[call](*asked["with"], **asked.get("named", {}))
        except APIError as error:
            say("failed", call=call, error={"message": str(error), "log": log.lines})
        else:
            say("returned", call=call, value=value)


if __name__ == "__main__":
    main()
