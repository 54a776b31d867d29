import assert from 'node:assert/strict'
import { test } from 'node:test'
import { append, columns, joined, type Series } from './series.ts'
import type { Sample } from './types.ts'

const GIB = 2 ** 30
const at = (at_ms: number, used: number | null): Sample => ({
  at_ms, used: used === null ? null : used * GIB, kept: null, foreign: null, free: null,
})
const series = (id: string, samples: Sample[], index: number | null = 0): Series => ({ id, index, total: 16 * GIB, samples })

test('a reading that is told twice counts once', () => {
  const seen = append([series('a', [at(1000, 1)])], [series('a', [at(1150, 1)])])
  assert.equal(seen[0]?.samples.length, 1)
  assert.equal(append(seen, [series('a', [at(2000, 2)])])[0]?.samples.length, 2)
  // Its size stays known while the card is lost.
  const lost = append(seen, [{ ...series('a', [at(3000, null)]), total: 0 }])
  assert.equal(lost[0]?.total, 16 * GIB)
})

test('what the page saw goes on where the record ends, GPUs first', () => {
  const both = joined(
    [series('host', [at(1000, 1)], null), series('a', [at(1000, 1), at(2000, 2)])],
    [series('a', [at(1500, 9), at(2500, 3)])],
    0,
  )
  assert.deepEqual(both.map((one) => one.id), ['a', 'host'])
  assert.deepEqual(both[0]?.samples.map((sample) => sample.at_ms), [1000, 2000, 2500])
  assert.deepEqual(joined([], [series('a', [at(1000, 1), at(5000, 2)])], 4000)[0]?.samples.length, 1)
})

test('where nothing was measured there is a gap, and unknown is never zero', () => {
  const [times, used] = columns([at(1000, 1), at(2000, 2), at(3000, null), at(4000, 4), at(60_000, 5), at(61_000, 6)])
  assert.deepEqual(used, [1, 2, null, 4, null, 5, 6])
  assert.equal(times.length, used.length)
})
