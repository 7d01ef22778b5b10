#!/usr/bin/env node
// Makes every call of npm's xiaomipush, unchanged; see ../drive.js. Calls are `Class.method`.
//
// A message is given as {"builder":[[setter, …arguments], …]} or {"ios":[…]}; {"builder":null} is the one of the call before,
// with whatever the package has left in it. {"targeted":[[target, message], …]} is a list of messages with their targets.
// {"constant":NAME} is the address that the package knows by that name.
'use strict'

const MiHelper = require('xiaomipush')
const Builder = require('xiaomipush/Builder')
const Constants = require('xiaomipush/Constants')
const HttpBase = require('xiaomipush/HttpBase')
const IOSBuilder = require('xiaomipush/IOSBuilder')
const Sender = require('xiaomipush/Sender')
const { drive, methods } = require('../drive')

let message

function build (made, setters) {
  for (const [setter, ...given] of setters) made[setter](...given)
  made.Build()
  message = made
  return made
}

function meant (argument) {
  if (argument === null || typeof argument !== 'object') return argument
  if (argument.builder) return build(new Builder(), argument.builder)
  if (argument.builder === null) return message
  if (argument.ios) return build(new IOSBuilder(), argument.ios)
  if (argument.constant) return Constants.domain + Constants[argument.constant]
  // The package does not export its TargetedMessage; this is all that its `multiSend` asks of one.
  if (argument.targeted) {
    return argument.targeted.map(([target, of]) => {
      const infos = meant(of).getJSONInfos()
      return { getFields: () => ({ target, message: infos }) }
    })
  }
  return argument
}

drive(({ base, secret, package: name }) => {
  Constants.domain = base
  Constants.setSecret(secret)
  Constants.setPackage(name)
  const calls = {}
  const add = (of, names, call) => {
    for (const name of names) calls[`${of}.${name}`] = (...given) => call(name)(...given.map(meant))
  }
  add('MiHelper', methods(MiHelper), name => (...given) => MiHelper[name](Constants.packageName, secret, ...given))
  for (const [of, made] of [['Sender', Sender], ['HttpBase', HttpBase]]) {
    add(of, methods(made.prototype), name => (...given) => new Sender()[name](...given))
  }
  // Messages are made where they are arguments.
  for (const [of, made] of [['Builder', Builder], ['IOSBuilder', IOSBuilder]]) {
    add(of, methods(made.prototype), name => () => { throw new Error(`${of}.${name} is no call`) })
  }
  return calls
})
