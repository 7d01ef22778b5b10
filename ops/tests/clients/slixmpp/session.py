#!/usr/bin/env python3
"""A session with slixmpp, unchanged: makes the calls that it is told. ../session.py says how."""

import asyncio
import ssl
import sys
from pathlib import Path

import slixmpp
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from session import CHANNELS, Refused, failed, read_arguments, read_calls, returned, say  # noqa: E402


class Session(slixmpp.ClientXMPP):
    def __init__(self, arguments):
        trust = ssl.create_default_context(cafile=arguments.ca)
        super().__init__(f"{arguments.jid}/push", arguments.token, ssl_context=trust)
        self.arguments = arguments
        self.enable_direct_tls = arguments.tls == "direct"
        self.enable_starttls = arguments.tls == "starttls"
        self.enable_plaintext = False
        self.whitespace_keepalive = False
        self.ended: asyncio.Future = self.loop.create_future()
        self.refusals: dict[str, asyncio.Future] = {}
        for plugin in ["xep_0030", "xep_0198", "xep_0199"]:
            self.register_plugin(plugin)
        # Stream management is on before anything is said: a session's stanzas are counted from its first.
        self.add_event_handler("sm_enabled", lambda _: self.begin())
        self.add_event_handler("session_resumed", lambda _: say("resumed"))
        # It tries one mechanism after another.
        self.add_event_handler("failed_auth", lambda failure: say("refused", condition=failure["condition"]))
        self.add_event_handler("failed_all_auth", lambda _: self.end(1))
        self.add_event_handler("ssl_invalid_chain", self.failed_to_connect)
        self.add_event_handler("connection_failed", self.failed_to_connect)
        self.add_event_handler("disconnected", self.lost)
        self.add_event_handler("message_error", self.refused_message)
        channel = MatchXPath(f"{{{self.default_ns}}}message/{{{CHANNELS}}}channel")
        self.register_handler(Callback("Channel", channel, self.on_channel))

    def begin(self) -> None:
        mechanism = self.plugin["feature_mechanisms"].mech.name
        tls = self.transport.get_extra_info("ssl_object").version()
        say("online", jid=self.boundjid.full, mechanism=mechanism, tls=tls)

    def end(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    def failed_to_connect(self, error: object) -> None:
        if isinstance(error, ssl.SSLCertVerificationError):
            say("untrusted")
            self.end(1)
        else:
            say("trouble", error=repr(error))

    def lost(self, reason: object) -> None:
        """A stream that nobody ended is taken up again."""
        if not self.ended.done():
            say("offline", reason=str(reason))
            self.connect(self.arguments.host, self.arguments.port)

    def on_channel(self, message) -> None:
        channel = message.xml.find(f"{{{CHANNELS}}}channel")
        say("channel", number=channel.get("number"), payload=channel.text or "")

    def refused_message(self, message) -> None:
        waiting = self.refusals.pop(message["id"], None)
        if waiting is not None:
            waiting.set_exception(Refused(message["error"]["condition"]))

    async def make(self, asked: dict) -> None:
        call = asked["call"]
        try:
            returned(call, await getattr(self, f"call_{call}")(*asked["with"]))
        except IqError as error:
            failed(call, error.condition)
        except Exception as error:  # Whatever it was, the caller of this program must see it.
            failed(call, error if isinstance(error, Refused) else repr(error))

    async def call_ping(self, to: str) -> None:
        await self.plugin["xep_0199"].send_ping(to, timeout=20)

    async def call_disco(self, to: str) -> dict:
        info = (await self.plugin["xep_0030"].get_info(to, timeout=20))["disco_info"]
        identities = sorted([category, kind] for category, kind, _, _ in info["identities"])
        return {"identities": identities, "features": sorted(info["features"])}

    async def call_open(self, number: str, payload: str) -> str:
        iq = self.make_iq_set()
        opening = ET.Element(f"{{{CHANNELS}}}open", {"number": number})
        opening.text = payload
        iq.append(opening)
        result = await iq.send(timeout=20)
        return result.xml.find(f"{{{CHANNELS}}}open").get("number")

    async def call_send(self, number: str, payload: str) -> None:
        message = self.make_message(mto=self.boundjid.domain, mtype="normal")
        channel = ET.Element(f"{{{CHANNELS}}}channel", {"number": number})
        channel.text = payload
        message.append(channel)
        message.send()

    async def call_message(self, to: str, text: str) -> None:
        message = self.make_message(mto=to, mbody=text, mtype="chat")
        message["id"] = self.new_id()
        waiting = self.refusals[message["id"]] = self.loop.create_future()
        message.send()
        await asyncio.wait_for(waiting, timeout=20)

    async def call_leave(self) -> None:
        self.end(0)
        await self.disconnect()


async def main() -> int:
    session = Session(read_arguments())
    session.connect(session.arguments.host, session.arguments.port)
    making: set[asyncio.Task] = set()

    def hand_over(asked: dict) -> None:
        def make() -> None:
            task = session.loop.create_task(session.make(asked))
            making.add(task)
            task.add_done_callback(making.discard)

        session.loop.call_soon_threadsafe(make)

    read_calls(hand_over)
    status = await session.ended
    if making:
        await asyncio.wait(making)
    return status


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
