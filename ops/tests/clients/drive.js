// What the drivers of npm packages have in common: arguments, TLS, and the loop that makes the calls that it is told.
//
// A driver is started with --base=URL --secret=S --package=PKG and, for https, --ca=FILE. It prints {"event":"ready","calls":[…]},
// every call that its package has, as the package itself says. Then it reads lines {"call":NAME,"with":[…]} and answers each
// with {"event":"returned","call":NAME,"value":…} or {"event":"failed","call":NAME,"error":…}: what the package gave to its caller.
'use strict'

const { spawnSync } = require('node:child_process')
const readline = require('node:readline')
const { parseArgs } = require('node:util')

function print (line) {
  process.stdout.write(JSON.stringify(line, (_, value) => value === undefined ? null : value) + '\n')
}

function readArguments () {
  const text = { type: 'string' }
  const { values } = parseArgs({ options: { base: text, secret: text, package: text, ca: text } })
  for (const name of ['base', 'secret', 'package']) {
    if (!values[name]) throw new Error(`--${name} is missing`)
  }
  if (!values.ca === values.base.startsWith('https:')) throw new Error('--ca goes with https, and with nothing else')
  return values
}

// The functions that an object has itself.
exports.methods = function (object) {
  return Object.getOwnPropertyNames(object).filter(name => name !== 'constructor' && typeof object[name] === 'function')
}

// What a package gave to its caller instead of a result.
function failure (error) {
  if (!(error instanceof Error)) return { message: String(error) }
  return { message: error.message, status: error.statusCode ?? error.response?.status }
}

async function answer (calls, { call, with: given }) {
  if (!(call in calls)) throw new Error(`the package has no ${call}`)
  try {
    print({ event: 'returned', call, value: await calls[call](...given) })
  } catch (error) {
    print({ event: 'failed', call, error: failure(error) })
  }
}

// Runs a driver. `connect` gets the arguments and gives the calls: an object of functions by name.
exports.drive = async function (connect) {
  let options
  try {
    options = readArguments()
  } catch (error) {
    process.stderr.write(`${error.message}\n`)
    process.exit(2)
  }
  if (options.ca && process.env.NODE_EXTRA_CA_CERTS !== options.ca) {
    // Node reads this variable at its start alone, and the packages have no option for a CA.
    const env = { ...process.env, NODE_EXTRA_CA_CERTS: options.ca }
    const { status } = spawnSync(process.execPath, process.argv.slice(1), { env, stdio: 'inherit' })
    process.exit(status ?? 1)
  }
  // Some packages would go through a proxy even to loopback.
  for (const name of ['HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy']) delete process.env[name]
  const calls = connect(options)
  print({ event: 'ready', calls: Object.keys(calls) })
  for await (const line of readline.createInterface({ input: process.stdin })) await answer(calls, JSON.parse(line))
  process.exit(0)
}
