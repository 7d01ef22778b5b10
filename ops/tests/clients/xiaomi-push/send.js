#!/usr/bin/env node
// Sends one message by regid, one by alias and one by topic through npm's xiaomi-push, unchanged, and prints one JSON line
// for each: {"event":"sent","by":…,"payload":…,"reply":{…}}. Exits with 0 if the server accepted all of them.
'use strict'

const { spawnSync } = require('node:child_process')
const { parseArgs } = require('node:util')

const USAGE =
  'usage: send.js --host H --port P (--ca FILE | --plain) --secret S --package PKG [--regid R] [--alias A] [--topic T] [--payload TEXT]'

function print (line) {
  process.stdout.write(JSON.stringify(line) + '\n')
}

function readArguments () {
  const text = { type: 'string' }
  // `--name value` becomes `--name=value`: a regid or a secret may begin with a dash.
  const args = []
  for (const argument of process.argv.slice(2)) {
    if (/^--[a-z]+$/.test(args.at(-1) ?? '') && args.at(-1) !== '--plain') args.push(`${args.pop()}=${argument}`)
    else args.push(argument)
  }
  const { values } = parseArgs({
    args,
    options: {
      host: text,
      port: text,
      ca: text,
      plain: { type: 'boolean' },
      secret: text,
      package: text,
      regid: text,
      alias: text,
      topic: text,
      payload: { type: 'string', default: 'from xiaomi-push' }
    }
  })
  for (const name of ['host', 'port', 'secret', 'package']) {
    if (!values[name]) throw new Error(`--${name} is missing`)
  }
  if (!values.ca === !values.plain) throw new Error('one of --ca and --plain is needed')
  if (!values.regid && !values.alias && !values.topic) throw new Error('one of --regid, --alias and --topic is needed')
  return values
}

// The package takes its hosts from the constants it exports, and no option for them. They are read when its other files
// are loaded, so they are changed before.
function pointAt (base) {
  const constant = require('xiaomi-push/lib/constant')
  const point = url => base + new URL(url).pathname
  for (const [name, value] of Object.entries(constant)) {
    if (typeof value === 'string') constant[name] = point(value)
    else for (const [key, url] of Object.entries(value)) value[key] = point(url)
  }
}

async function main (options) {
  const host = options.host.includes(':') ? `[${options.host}]` : options.host
  pointAt(`${options.plain ? 'http' : 'https'}://${host}:${options.port}`)
  const { Message, Notification } = require('xiaomi-push')
  const notification = new Notification({ production: true, appSecret: options.secret })
  const sends = {
    regid: (target, message) => notification.sendToRegid(target, message),
    alias: (target, message) => notification.sendToAlias(target, message),
    topic: (target, message) => notification.sendToTopic(target, message)
  }
  let failed = false
  for (const [by, send] of Object.entries(sends)) {
    if (!options[by]) continue
    const payload = `${options.payload} by ${by}`
    const message = new Message()
      .title('title')
      .description('description')
      .payload(payload)
      .passThrough(1)
      .notifyType(-1)
      .notifyId(4294967297)
      .timeToLive(3600000)
      .restrictedPackageName(options.package)
      .extra('own', 'value')
    try {
      print({ event: 'sent', by, payload, reply: await send(options[by], message) })
    } catch (error) {
      failed = true
      print({ event: 'failed', by, payload, error: error.message })
    }
  }
  return failed ? 1 : 0
}

let options
try {
  options = readArguments()
} catch (error) {
  process.stderr.write(`${error.message}\n${USAGE}\n`)
  process.exit(2)
}
if (options.ca && process.env.NODE_EXTRA_CA_CERTS !== options.ca) {
  // Node reads this variable at its start alone, and the package has no option for a CA.
  const env = { ...process.env, NODE_EXTRA_CA_CERTS: options.ca }
  const { status } = spawnSync(process.execPath, process.argv.slice(1), { env, stdio: 'inherit' })
  process.exit(status ?? 1)
}
// The package is built on `request`, which would go through a proxy even to loopback.
for (const name of ['HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy']) delete process.env[name]
main(options).then(code => process.exit(code))
