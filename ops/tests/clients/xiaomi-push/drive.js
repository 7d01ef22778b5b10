#!/usr/bin/env node
// Makes every call of npm's xiaomi-push, unchanged; see ../drive.js. Calls are `Class.method`.
//
// A message is given as {"message":[[setter, …arguments], …]}; {"message":null} is the one of the call before, with whatever
// the package has left in it.
'use strict'

const { drive, methods } = require('../drive')

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

drive(({ base, secret, package: restrictedPackageName }) => {
  pointAt(base)
  const { Message, ...services } = require('xiaomi-push')
  const options = { production: true, appSecret: secret, restrictedPackageName, interval: 1 }
  let message = new Message()
  const meant = argument => {
    if (argument === null || typeof argument !== 'object' || !('message' in argument)) return argument
    if (argument.message) {
      message = argument.message.reduce((made, [setter, ...given]) => made[setter](...given), new Message())
    }
    return message
  }
  const calls = {}
  for (const setter of methods(Message.prototype)) {
    calls[`Message.${setter}`] = (...given) => message[setter](...given)
  }
  for (const [name, Service] of Object.entries(services)) {
    const service = new Service(options)
    for (const method of methods(Service.prototype)) {
      calls[`${name}.${method}`] = (...given) => service[method](...given.map(meant))
    }
    // Its `request` takes an address; those that it knows go by their names.
    if (service.apis) {
      calls[`${name}.request`] = (api, data) => service.request(service.apis[api], data)
    }
    // It goes on until it is cancelled and tells what it found each time; the first is the answer here.
    if (service.start) {
      calls[`${name}.start`] = () => new Promise(resolve => service.once('feedback', resolve).start())
    }
  }
  return calls
})
