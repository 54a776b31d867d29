import assert from 'node:assert/strict'
import { test } from 'node:test'
import { changeBar, gpuBar, hue, type Bar, type Kind } from './bars.ts'
import type { Gpu } from './types.ts'

const GIB = 2 ** 30

function gpu(holders: Gpu['holders'], memory: Partial<Record<'used' | 'kept' | 'foreign', number>> = {}): Gpu {
  const balance = { total: 16, reserved: 1, used: 10, kept: 8, foreign: 2, headroom: 0.5, ...memory }
  const bytes = Object.fromEntries(Object.entries(balance).map(([name, n]) => [name, n * GIB])) as typeof balance
  return {
    index: 0,
    id: 'GPU-0',
    name: 'card',
    age_ms: 0,
    memory: { value: { ...bytes, free: bytes.total - bytes.reserved - bytes.used } },
    suspect: null,
    holders,
    temperature_c: null,
    power_w: null,
    utilization_percent: null,
  }
}

const holder = (name: string, ours: boolean, n: number | null) => ({
  name,
  ours,
  unit: ours ? null : 'x.service',
  pids: [7],
  memory: n === null ? { unknown: 'the driver does not say' } : { value: n * GIB },
})

function shares(bar: Bar): [Kind, string, number][] {
  assert.ok('segments' in bar)
  const sum = bar.segments.reduce((sum, { bytes }) => sum + bytes, 0)
  assert.equal(sum, bar.total, 'the segments are the whole device')
  return bar.segments.map(({ kind, label, bytes }) => [kind, label, bytes / GIB])
}

test('a bar says who holds what, and its pieces are the whole device', () => {
  const bar = gpuBar(gpu({ value: [holder('Xorg', false, 2), holder('aeon', true, 8)] }), [])
  assert.deepEqual(shares(bar), [
    ['model', 'aeon', 8],
    ['foreign', 'Xorg', 2],
    ['free', 'free', 4.5],
    ['headroom', 'headroom', 0.5],
    ['reserved', 'the driver’s own', 1],
  ])
})

test('what is kept for a model and not taken yet is not free', () => {
  const memory = { used: 5, kept: 8, foreign: 2 }
  const loading = gpuBar(gpu({ value: [holder('aeon', true, 3), holder('Xorg', false, 2)] }, memory), ['aeon'])
  assert.deepEqual(shares(loading).slice(2, 4), [
    ['kept', 'kept for aeon', 5],
    ['free', 'free', 4.5],
  ])
  const two = gpuBar(gpu({ value: [holder('aeon', true, 3), holder('Xorg', false, 2)] }, memory), ['aeon', 'b'])
  assert.equal(shares(two)[2]?.[1], 'kept for models')
})

test('use that nobody is listed for is shown as nobody’s', () => {
  const bar = gpuBar(gpu({ value: [holder('aeon', true, 8)] }), [])
  assert.deepEqual(shares(bar)[1], ['nobody', 'by nobody that is listed', 2])
  const untold = gpuBar(gpu({ value: [holder('aeon', true, 8), holder('Xorg', false, null)] }), [])
  assert.deepEqual(shares(untold)[1], ['nobody', 'Xorg: how much is not told', 2])
  const nobody = gpuBar(gpu({ unknown: 'no lists' }), [])
  assert.deepEqual(shares(nobody)[0], ['nobody', 'in use, by whom is unknown: no lists', 10])
})

test('an unknown device has no bar, and never an empty one', () => {
  const lost = { ...gpu({ unknown: 'lost' }), memory: { unknown: 'it is lost' } }
  assert.deepEqual(gpuBar(lost, []), { unknown: 'it is lost' })
})

test('a plan’s bar hangs over the end by what is short', () => {
  const change = {
    index: 0, total: 16 * GIB, unusable: 1 * GIB, foreign: 1 * GIB, foreign_by: ['Xorg'],
    before: [['a', 4 * GIB]] as [string, number][], after: [['b', 17 * GIB]] as [string, number][],
    needs: 17 * GIB, available: 14 * GIB,
  }
  assert.deepEqual(shares(changeBar(change, 'before') as Bar).map(([kind, , n]) => [kind, n]), [
    ['model', 4], ['foreign', 1], ['free', 10], ['headroom', 1],
  ])
  const after = changeBar(change, 'after')
  assert.equal(after.total, 19 * GIB)
  assert.deepEqual(shares(after as Bar).map(([kind, , n]) => [kind, n]), [
    ['model', 14], ['foreign', 1], ['headroom', 1], ['short', 3],
  ])
})

test('a model’s colour is its own, whatever else runs', () => {
  const all = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']
  assert.deepEqual(all.map((name) => hue(name, all)), [1, 2, 3, 4, 5, 6, 7, 8, 1])
  assert.equal(hue('gone', all), 0)
})
