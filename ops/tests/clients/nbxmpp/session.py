#!/usr/bin/env python3
"""A session with nbxmpp, unchanged: makes the calls that it is told. ../session.py says how."""

import sys
from pathlib import Path

from gi.repository import Gio, GLib
from nbxmpp.client import Client
from nbxmpp.const import ConnectionProtocol, ConnectionType, StreamError
from nbxmpp.errors import StanzaError
from nbxmpp.protocol import JID, Iq, Message
from nbxmpp.simplexml import Node
from nbxmpp.structs import StanzaHandler

sys.path[0] = str(Path(__file__).resolve().parent.parent)
from session import CHANNELS, failed, read_arguments, read_calls, returned, say  # noqa: E402

TLS = {"direct": ConnectionType.DIRECT_TLS, "starttls": ConnectionType.START_TLS}


def tell(call: str, task, told) -> None:
    """Tells the result of a task as that of a call."""

    def finished(task) -> None:
        try:
            returned(call, told(task.finish()))
        except StanzaError as error:
            failed(call, error.condition)
        except Exception as error:  # Whatever it was, the caller of this program must see it.
            failed(call, repr(error))

    task.add_done_callback(finished, weak=False)


class Session:
    def __init__(self, arguments, loop: GLib.MainLoop):
        # The library trusts whom GLib trusts.
        trust = Gio.TlsFileDatabase.new(str(Path(arguments.ca).resolve()))
        Gio.TlsBackend.get_default().set_default_database(trust)
        self.loop = loop
        self.status = 0
        self.leaving = False
        self.refusals: dict[str, str] = {}
        self.client = client = Client()
        jid = JID.from_string(arguments.jid)
        client.set_domain(jid.domain)
        client.set_username(jid.localpart)
        client.set_password(arguments.token)
        client.set_resource("push")
        client.set_custom_host(f"{arguments.host}:{arguments.port}", ConnectionProtocol.TCP, TLS[arguments.tls])
        client.subscribe("connected", lambda *_: self.online())
        client.subscribe("resume-successful", lambda *_: say("resumed"))
        client.subscribe("disconnected", lambda *_: self.lost())
        client.subscribe("connection-failed", lambda *_: self.lost())
        client.register_handler(StanzaHandler(name="message", callback=self.on_message))
        client.connect()

    def online(self) -> None:
        say("online", jid=str(self.client.get_bound_jid()), tls=self.client.tls_version.value_nick)

    def lost(self) -> None:
        """A stream that nobody ended is taken up again."""
        domain, condition, _ = self.client.get_error()
        if domain is StreamError.SASL:
            say("refused", condition=condition)
            self.status = 1
        elif domain is StreamError.BAD_CERTIFICATE:
            say("untrusted")
            self.status = 1
        elif not self.leaving:
            say("offline", reason=f"{domain}: {condition}")
            GLib.idle_add(self.again)
            return
        self.loop.quit()

    def again(self) -> bool:
        self.client.connect()
        return GLib.SOURCE_REMOVE

    def on_message(self, _client, stanza, _properties) -> None:
        call = self.refusals.pop(stanza.getID(), None)
        if stanza.getType() == "error":
            if call is not None:
                failed(call, StanzaError(stanza).condition)
            return
        channel = stanza.getTag("channel", namespace=CHANNELS)
        if channel is not None:
            say("channel", number=channel.getAttr("number"), payload=channel.getData())

    def make(self, asked: dict) -> bool:
        try:
            getattr(self, f"call_{asked['call']}")(*asked["with"])
        except Exception as error:  # As above.
            failed(asked["call"], repr(error))
        return GLib.SOURCE_REMOVE

    def call_ping(self, to: str) -> None:
        tell("ping", self.client.get_module("Ping").ping(JID.from_string(to), timeout=20), lambda _: None)

    def call_disco(self, to: str) -> None:
        def told(info) -> dict:
            identities = sorted([identity.category, identity.type] for identity in info.identities)
            return {"identities": identities, "features": sorted(info.features)}

        tell("disco", self.client.get_module("Discovery").disco_info(to, timeout=20), told)

    def call_open(self, number: str, payload: str) -> None:
        iq = Iq("set")
        iq.addChild(node=Node(f"{CHANNELS} open", attrs={"number": number}, payload=[payload]))

        def answered(_client, stanza) -> None:
            if stanza is None:
                failed("open", "no answer")
            elif stanza.getType() == "error":
                failed("open", StanzaError(stanza).condition)
            else:
                returned("open", stanza.getTag("open", namespace=CHANNELS).getAttr("number"))

        self.client.send_stanza(iq, callback=answered, timeout=20)

    def call_send(self, number: str, payload: str) -> None:
        message = Message(typ="normal", to=self.client.domain)
        message.addChild(node=Node(f"{CHANNELS} channel", attrs={"number": number}, payload=[payload]))
        self.client.send_stanza(message)
        returned("send", None)

    def call_message(self, to: str, text: str) -> None:
        self.refusals[self.client.send_stanza(Message(to=to, body=text, typ="chat"))] = "message"

    def call_leave(self) -> None:
        self.leaving = True
        returned("leave", None)
        self.client.disconnect()


def main() -> int:
    loop = GLib.MainLoop()
    session = Session(read_arguments(), loop)
    read_calls(lambda asked: GLib.idle_add(session.make, asked))
    loop.run()
    return session.status


if __name__ == "__main__":
    sys.exit(main())
