#!/usr/bin/env node
// Makes every call of npm's push-xiaomi, unchanged; see ../drive.js. A last argument {"options":{…}} is the package's own
// options; paths in it are completed to addresses.
'use strict'

const Xiaomi = require('push-xiaomi')
const { drive, methods } = require('../drive')

// `push` tells what came of each part of the list by functions that it is given, and at the end what came of all.
function push (client, data) {
  return new Promise((resolve, reject) => {
    const replies = []
    const failures = []
    const success = reply => replies.push(reply.data)
    const fail = error => failures.push(error.message)
    const finish = summary => resolve({ summary, replies, failures })
    client.push({ ...data, success, fail, finish }).catch(reject)
  })
}

drive(({ base, secret, package: appPkgName }) => {
  const client = ({ pushUrl = '/v3/message/regid', queryUrl = '/v1/trace/message/status', ...others } = {}) =>
    new Xiaomi({ appSecret: secret, appPkgName, pushUrl: base + pushUrl, queryUrl: base + queryUrl, ...others })
  const made = given => given.at(-1)?.options ? [client(given.at(-1).options), ...given.slice(0, -1)] : [client(), ...given]
  const calls = {}
  for (const method of methods(Xiaomi.prototype)) {
    calls[method] = (...given) => {
      const [xiaomi, ...rest] = made(given)
      return method === 'push' ? push(xiaomi, ...rest) : xiaomi[method](...rest)
    }
  }
  return calls
})
