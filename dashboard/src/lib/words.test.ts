import assert from 'node:assert/strict'
import { test } from 'node:test'
import { logsOf, nextSteps, request } from './command.ts'
import { about, age, bytes, clock, gib, gpus, moves, names, plain, took } from './format.ts'

test('figures are as berthctl writes them', () => {
  const GIB = 2 ** 30
  assert.deepEqual([0, 512, 420 * 2 ** 20, 14.34 * GIB].map(bytes), ['0 MiB', '512 B', '420 MiB', '14.3 GiB'])
  assert.deepEqual([0, 1, 0.04 * GIB, 14.34 * GIB].map(gib), ['0.0', '<0.1', '<0.1', '14.3'])
  assert.deepEqual([0, 2504, 59_949, 64_000, 3_725_000].map(took), ['0.0 s', '2.5 s', '59.9 s', '1m04s', '1h02m'])
  assert.deepEqual([400, 19_200, 64_000].map(about), ['0.4 s', '19 s', '1m04s'])
  assert.deepEqual([-5, 40_000, 720_000, 18_000_000, 259_200_000].map(age), ['0 s', '40 s', '12 min', '5 h', '3 d'])
  assert.deepEqual([[], [0], [0, 1], [0, 1, 2], [0, 2]].map(gpus), ['', 'GPU 0', 'GPU 0+1', 'GPU 0-2', 'GPU 0+2'])
  assert.deepEqual([[], ['a'], ['a', 'b', 'c']].map((all) => names(all)), ['nothing', 'a', 'a, b and c'])
})

test('a moment of another day has its date', () => {
  const now = new Date(2026, 10, 24, 18, 0, 0).getTime()
  assert.equal(clock(new Date(2026, 10, 24, 9, 5, 3).getTime(), now), '09:05:03')
  assert.equal(clock(new Date(2026, 10, 23, 9, 5, 3).getTime(), now), '2026-11-23 09:05:03')
})

test('a swap in a few words', () => {
  assert.equal(moves({ verb: 'switch', stops: ['a', 'b'], starts: ['c'] }), 'a + b → c')
  assert.equal(moves({ verb: 'start', stops: [], starts: ['c'] }), 'start c')
  assert.equal(moves({ verb: 'stop_all', stops: ['a'], starts: [] }), 'stop a')
  assert.equal(moves({ verb: 'restart', stops: ['a'], starts: ['a'] }), 'restart a')
  assert.equal(moves({ verb: 'switch', stops: [], starts: [] }), 'switch')
})

test('a log’s colours are no text', () => {
  assert.equal(plain('\u001b[31merror\u001b[0m: \u0007no\tway'), 'error: no\tway')
})

test('commands that the page can do are found, others are left alone', () => {
  assert.deepEqual(request('berthctl switch llama70b --set ctx=32768 --set kv=q4_0'), {
    verb: 'switch', model: 'llama70b', set: { ctx: '32768', kv: 'q4_0' },
  })
  assert.deepEqual(request('berthctl plan start a'), { verb: 'start', model: 'a' })
  assert.deepEqual(request('berthctl retry a'), { verb: 'retry', model: 'a' })
  assert.deepEqual(request('berthctl back'), { verb: 'back' })
  assert.deepEqual(request('berthctl stop --all'), { verb: 'stop_all' })
  for (const none of [
    'berthctl switch MODEL', 'berthctl switch MODEL --set KEY=VALUE', 'berthctl switch a --set ctx', 'berthctl switch',
    'berthctl switch a b', 'berthctl switch --force', 'berthctl logs a', 'sudo kill -9 7', 'nvidia-smi -i 1', '',
  ]) assert.equal(request(none), null, none)
  assert.equal(logsOf('berthctl logs aeon'), 'aeon')
  assert.equal(logsOf('berthctl logs -f'), null)
  assert.deepEqual(nextSteps('berthctl logs a; then berthctl retry a'), ['berthctl logs a', 'berthctl retry a'])
})
