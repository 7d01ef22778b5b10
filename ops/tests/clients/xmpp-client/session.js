// A session with npm's @xmpp/client, unchanged: makes the calls that it is told. ../session.py says how, and NODE_EXTRA_CA_CERTS
// must name the CA besides. With --ws=wss://…/xmpp-websocket it goes over a WebSocket (RFC 7395) in place of TCP, and with
// --ws=HOST:PORT over the one that the package finds in the host-meta there (XEP-0156).
import { webcrypto } from 'node:crypto'
import readline from 'node:readline'
import { parseArgs } from 'node:util'

import { client, xml } from '@xmpp/client'
import { http } from '@xmpp/resolve/resolve.js'
import WebSocket from 'ws'

// What the package asks for by names that Node 18, and Node 20, do not know yet. That of Node 22 does not say why a certificate
// is not trusted.
globalThis.crypto ??= webcrypto
globalThis.WebSocket = WebSocket

const CHANNELS = 'urn:campanile:channel:1'
// What Node calls a certificate that no CA that it trusts has made.
const UNTRUSTED = new Set([
  'SELF_SIGNED_CERT_IN_CHAIN', 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY', 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'
])
const DISCO = 'http://jabber.org/protocol/disco#info'

const say = (event, members) => process.stdout.write(JSON.stringify({ event, ...members }) + '\n')

const text = { type: 'string' }
const names = ['host', 'port', 'tls', 'ca', 'jid', 'token']
const options = Object.fromEntries([...names, 'ws'].map(name => [name, text]))
const { values: given } = parseArgs({ options })
const missing = names.filter(name => !given[name])
if (missing.length > 0 || process.env.NODE_EXTRA_CA_CERTS !== given.ca) {
  process.stderr.write(`missing: ${missing} or NODE_EXTRA_CA_CERTS=${given.ca}\n`)
  process.exit(2)
}

const [username, domain] = given.jid.split('@')
const scheme = given.tls === 'direct' ? 'xmpps' : 'xmpp'

// By itself the package asks for a domain's host-meta on port 443 alone, and the DNS before.
async function found (place) {
  const [endpoint] = await http.resolve(place)
  return endpoint?.uri
}

const tcp = `${scheme}://${given.host}:${given.port}`
const service = given.ws?.includes('://') === false ? await found(given.ws) : given.ws ?? tcp
if (!service) {
  process.stderr.write(`nothing is announced at ${given.ws}\n`)
  process.exit(2)
}
const xmpp = client({ service, domain, resource: 'push', username, password: given.token })
// Seldom enough for a device; here nobody wants to wait.
xmpp.reconnect.delay = 100

let leaving = false
let refused = false
const refusals = new Map()

xmpp.on('online', jid => say('online', { jid: jid.toString(), tls: xmpp.socket?.socket?.getProtocol?.() }))
xmpp.streamManagement.on('resumed', () => say('resumed'))
xmpp.on('disconnect', () => { if (!leaving && !refused) say('offline') })
xmpp.on('error', error => {
  if (error.name === 'SASLError') {
    refused = true
    say('refused', { condition: error.condition })
    xmpp.reconnect.stop()
    xmpp.stop().catch(() => {}).finally(() => process.exit(1))
  } else if (UNTRUSTED.has(error.code)) {
    say('untrusted')
    process.exit(1)
  } else {
    say('trouble', { error: String(error) })
  }
})
xmpp.on('stanza', stanza => {
  if (!stanza.is('message')) return
  if (stanza.attrs.type === 'error') {
    refusals.get(stanza.attrs.id)?.(stanza.getChild('error').getChildElements()[0].name)
    return
  }
  const channel = stanza.getChild('channel', CHANNELS)
  if (channel) say('channel', { number: channel.attrs.number, payload: channel.text() })
})

let messages = 0
const calls = {
  async ping (to) {
    await xmpp.iqCaller.get(xml('ping', 'urn:xmpp:ping'), to)
    return null
  },
  async disco (to) {
    const query = await xmpp.iqCaller.get(xml('query', DISCO), to)
    const identities = query.getChildren('identity').map(({ attrs }) => [attrs.category, attrs.type])
    return { identities, features: query.getChildren('feature').map(({ attrs }) => attrs.var).sort() }
  },
  async open (number, payload) {
    const opened = await xmpp.iqCaller.set(xml('open', { xmlns: CHANNELS, number }, payload))
    return opened.attrs.number
  },
  async send (number, payload) {
    await xmpp.send(xml('message', { to: domain }, xml('channel', { xmlns: CHANNELS, number }, payload)))
    return null
  },
  async message (to, body) {
    const id = `message-${++messages}`
    const refusal = new Promise(resolve => refusals.set(id, resolve))
    await xmpp.send(xml('message', { to, id, type: 'chat' }, xml('body', {}, body)))
    throw Object.assign(new Error(), { condition: await refusal })
  },
  async leave () {
    leaving = true
    await xmpp.stop()
    return null
  }
}

async function make ({ call, with: given }) {
  try {
    say('returned', { call, value: await calls[call](...given) })
  } catch (error) {
    say('failed', { call, error: error.condition ?? String(error) })
  }
  if (call === 'leave') process.exit(0)
}

xmpp.start().catch(() => {})
readline.createInterface({ input: process.stdin }).on('line', line => make(JSON.parse(line)))
