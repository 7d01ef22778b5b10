#!/usr/bin/env python3
"""Receives push with slixmpp, unchanged: an XMPP client that knows nothing of Campanile.

Logs in with SCRAM-SHA-256 over STARTTLS, opens the push channel, registers an app, and prints one JSON line for each event:
{"event":"ready","regid":…,"mechanism":…,"tls":…}, then {"event":"push","id":…,"app":…,"payload":…,"broadcast":…,
"notification":{…}} for each message, which it acknowledges. Ends with 0 after --count pushes, each acknowledged and the
acknowledgement answered, with 1 and {"event":"failed","reason":…} when something went wrong.
"""

import argparse
import asyncio
import base64
import importlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

import slixmpp
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.transport.TTransport import TMemoryBuffer

import seal

NS = "urn:campanile:channel:1"
PUSH = "5"
CONTRACTS = Path(__file__).resolve().parents[4] / "idl" / "thrift"


class Failed(Exception):
    """Something that ends the program."""


def say(event: str, **members) -> None:
    print(json.dumps({"event": event, **members}, ensure_ascii=False), flush=True)


def load_contracts(folder: Path):
    """Makes Python code of the Thrift contracts and loads that of the push channel and of messages."""
    with tempfile.TemporaryDirectory() as made:
        compiler = ["thrift", "-r", "--gen", "py", "-out", made, str(folder / "push.thrift")]
        subprocess.run(compiler, check=True, capture_output=True)
        sys.path.insert(0, made)
        try:
            return importlib.import_module("push.ttypes"), importlib.import_module("message.ttypes")
        finally:
            sys.path.remove(made)


def encode(struct) -> bytes:
    buffer = TMemoryBuffer()
    struct.write(TCompactProtocol(buffer))
    return buffer.getvalue()


def decode(kind, data: bytes):
    struct = kind()
    struct.read(TCompactProtocol(TMemoryBuffer(data)))
    return struct


def text_of(message: bytes) -> str:
    """A message id as replies to senders have it: 26 characters of Crockford's base 32."""
    number = int.from_bytes(message, "big")
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[number >> shift & 31] for shift in range(125, -1, -5))


class Receiver(slixmpp.ClientXMPP):
    def __init__(self, arguments: argparse.Namespace):
        mechanism = {"feature_mechanisms": {"use_mech": "SCRAM-SHA-256", "encrypted_plain": False}}
        trust = ssl.create_default_context(cafile=arguments.ca)
        super().__init__(arguments.jid, arguments.token, plugin_config=mechanism, ssl_context=trust)
        self.arguments = arguments
        self.push, self.message = load_contracts(CONTRACTS)
        self.secret = os.urandom(32)
        self.key = self.app_keys = None
        self.answers: dict[int, asyncio.Future] = {}
        self.arrived: asyncio.Queue = asyncio.Queue()
        self.ended: asyncio.Future = self.loop.create_future()
        self.enable_direct_tls = self.enable_plaintext = False
        self.whitespace_keepalive = False
        self.add_event_handler("session_start", lambda _: self.begin())
        self.add_event_handler("failed_all_auth", lambda _: self.end("the server refused the login"))
        self.add_event_handler("connection_failed", lambda error: self.end(f"no connection: {error}"))
        self.add_event_handler("ssl_invalid_chain", lambda error: self.end(f"the certificate is not trusted: {error}"))
        self.add_event_handler("stream_error", lambda error: self.end(f"stream error: {error['condition']}"))
        self.add_event_handler("disconnected", lambda reason: self.end(f"disconnected: {reason}"))
        channel = MatchXPath(f"{{{self.default_ns}}}message/{{{NS}}}channel")
        self.register_handler(Callback("Channel", channel, self.on_channel))

    def end(self, failure: str | None = None) -> None:
        if not self.ended.done():
            self.ended.set_result(failure)

    def begin(self) -> None:
        async def guarded() -> None:
            try:
                await self.work()
            except Exception as error:  # Whatever it was, the caller of this program must see it.
                self.end(f"{type(error).__name__}: {error}")
            else:
                self.end()

        self.task = asyncio.ensure_future(guarded())

    async def work(self) -> None:
        if "starttls" not in self.features:
            raise Failed("the stream is not encrypted by STARTTLS")
        await self.open_channel()
        registered = await self.register_app()
        command = self.push
        for topic in self.arguments.topic:
            await self.command(subscribe=command.Subscribe(app=self.arguments.app, topic=topic))
        for alias in self.arguments.alias:
            await self.command(set_alias=command.SetAlias(app=self.arguments.app, alias_name=alias))
        say("ready", regid=registered.regid, mechanism=self.plugin["feature_mechanisms"].mech.name, tls=self.tls_version())
        seen: set[bytes] = set()
        while self.arguments.count is None or len(seen) < self.arguments.count:
            deliver = await self.arrived.get()
            await self.take(deliver, seen)

    def tls_version(self) -> str:
        return self.transport.get_extra_info("ssl_object").version()

    async def open_channel(self) -> None:
        iq = self.make_iq_set()
        opening = ET.Element(f"{{{NS}}}open", {"number": PUSH})
        opening.text = base64.b64encode(encode(self.push.Hello(registrations=[]))).decode()
        iq.append(opening)
        result = await iq.send(timeout=20)
        opened = result.xml.find(f"{{{NS}}}open")
        if opened is None or opened.get("number") != PUSH:
            raise Failed("the channel was not opened")

    async def register_app(self):
        arguments = self.arguments
        public = seal.public_of(self.secret)
        account = self.boundjid.user
        result = await self.command(
            register_app=self.push.Register(
                app=arguments.app,
                package_name=arguments.package,
                public_key=public,
                proof=seal.registration_proof(arguments.app_key, account, arguments.app, public),
                attributes={"platform": "python"},
            )
        )
        registered = result.registered
        self.key = seal.agree_as_device(self.secret, registered.server_key, arguments.app_key)
        keys = seal.open_keys(self.key, arguments.app, registered.sealed_keys)
        self.app_keys = decode(self.push.AppKeys, keys)
        return registered

    async def command(self, **field):
        """Sends one command and waits for its result."""
        number = max(self.answers, default=0) + 1
        answer = self.answers[number] = self.loop.create_future()
        self.send_up(self.push.FromDevice(request=number, **field))
        result = await asyncio.wait_for(answer, timeout=20)
        if result.code != 0:
            raise Failed(f"{next(iter(field))} was answered with code {result.code}: {result.description}")
        return result

    def send_up(self, command) -> None:
        message = self.make_message(mto=self.boundjid.domain, mtype="normal")
        channel = ET.Element(f"{{{NS}}}channel", {"number": PUSH})
        channel.text = base64.b64encode(encode(command)).decode()
        message.append(channel)
        message.send()

    def on_channel(self, message) -> None:
        channel = message.xml.find(f"{{{NS}}}channel")
        down = decode(self.push.ToDevice, base64.b64decode(channel.text or ""))
        if down.result is not None:
            answer = self.answers.get(down.result.request)
            if answer is not None and not answer.done():
                answer.set_result(down.result)
        elif down.deliver is not None:
            self.arrived.put_nowait(down.deliver)
        elif down.invalidated is not None:
            self.end(f"the registration {down.invalidated.regid} is gone")

    async def take(self, deliver, seen: set[bytes]) -> None:
        """Opens a delivery, shows it unless it was shown, and acknowledges it."""
        app, keys = self.arguments.app, self.app_keys
        if deliver.broadcast:
            plaintext = seal.open_broadcast(keys.broadcast_key, keys.verify_key, app, deliver.id, deliver.sealed)
        else:
            plaintext = seal.open_single(self.key, app, deliver.id, deliver.sealed)
        if deliver.id not in seen:
            seen.add(deliver.id)
            notification = decode(self.message.Notification, plaintext)
            members = {name: value for name, value in vars(notification).items() if value is not None}
            say(
                "push",
                id=text_of(deliver.id),
                app=deliver.app,
                payload=notification.payload,
                broadcast=bool(deliver.broadcast),
                notification=members,
            )
        which = {"broadcasts" if deliver.broadcast else "messages": deliver.id}
        await self.command(ack=self.push.Ack(apps=[self.push.AppAck(app=app, **which)]))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Receives push with slixmpp.")
    for name in ["host", "ca", "jid", "token", "app", "app-key", "package"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--topic", action="append", default=[], help="subscribe to it; may be repeated")
    parser.add_argument("--alias", action="append", default=[], help="set it; may be repeated")
    parser.add_argument("--count", type=int, help="end after so many pushes")
    # `--name value` becomes `--name=value`: a token or a key may begin with a dash.
    joined: list[str] = []
    for argument in sys.argv[1:]:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return parser.parse_args(joined)


async def main() -> int:
    receiver = Receiver(read_arguments())
    receiver.connect(receiver.arguments.host, receiver.arguments.port)
    failure = await receiver.ended
    if failure is not None:
        say("failed", reason=failure)
    receiver.abort() if failure else await receiver.disconnect()
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
