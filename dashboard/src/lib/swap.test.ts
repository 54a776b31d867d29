import assert from 'node:assert/strict'
import { test } from 'node:test'
import { announced, isStopped, merged, pieces, withStep } from './swap.ts'
import type { Event, Step, Swap } from './types.ts'

function step(name: Step['step'], state: Step['state'], elapsed_ms = 0, more: Partial<Step> = {}): Step {
  return { step: name, state, elapsed_ms, rollback: false, model: null, expected_ms: null, detail: '', ...more }
}

function swap(steps: Step[], more: Partial<Swap> = {}): Swap {
  return {
    id: 7, verb: 'switch', model: 'genesis', by: null, stops: ['aeon'], starts: ['genesis'], gpus: [0], began_ms: 0,
    elapsed_ms: 0, expected_ms: null, steps, outcome: null, reason: null, failure: null, held_at_exit: null,
    early_start_would_fail: false, gap_ms: null, serving: [], undo: null, ...more,
  }
}

test('a running swap shows what was, what is and what is to come', () => {
  const told = [step('checked', 'done', 10), step('drained', 'skipped'), step('stopped', 'done', 990), step('released', 'began', 500, { expected_ms: 3000 })]
  const ahead = [
    { step: 'stopped' as const, model: null, expected_ms: 900 },
    { step: 'released' as const, model: null, expected_ms: 3000 },
    { step: 'ready' as const, model: 'genesis', expected_ms: 6000 },
  ]
  const row = pieces(swap(told), 700, ahead)
  assert.deepEqual(row.map((piece) => [piece.step, piece.state, piece.elapsed_ms]), [
    ['checked', 'done', 10],
    ['stopped', 'done', 990],
    ['released', 'running', 1200],
    ['ready', 'ahead', 0],
  ])
  assert.equal(row[0]?.from, 0)
  assert.ok(Math.abs((row.at(-1)?.to ?? 0) - 1) < 1e-9)
  const [, , released, ready] = row.map((piece) => piece.to - piece.from)
  // As long as it is expected to take, while it takes less.
  assert.ok(Math.abs((ready ?? 0) / (released ?? 1) - 2) < 1e-9)
  for (const [i, piece] of row.entries()) assert.equal(piece.from, row[i - 1]?.to ?? 0)
})

test('without its plan what is usual is to come, and after a failure nothing', () => {
  const begun = pieces(swap([step('stopped', 'began')]), 0, [])
  assert.deepEqual(begun.map((piece) => piece.step), ['stopped', 'released', 'ready'])
  const alone = pieces(swap([step('ready', 'began', 0, { model: 'genesis' })], { stops: [] }), 0, [])
  assert.deepEqual(alone.map((piece) => piece.step), ['ready'])
  const back = pieces(swap([step('ready', 'failed', 5), step('stopped', 'began', 0, { rollback: true })]), 0, [])
  assert.deepEqual(back.map((piece) => piece.state), ['failed', 'running'])
})

test('a step that ended takes the place of its beginning', () => {
  const began = swap([step('stopped', 'done', 5), step('released', 'began')])
  const ended = withStep(began, step('released', 'done', 2500))
  assert.deepEqual(ended.steps.map((step) => [step.step, step.state]), [['stopped', 'done'], ['released', 'done']])
  const back = withStep(ended, step('released', 'began', 0, { rollback: true }))
  assert.equal(back.steps.length, 3)
})

test('past swaps are told once, newest first, and none that is under way', () => {
  const done = { outcome: 'done' as const }
  const all = merged([swap([], { id: 3, ...done }), swap([], { id: 1, ...done })], [
    swap([], { id: 2, ...done }), swap([], { id: 3, ...done }), swap([], { id: 4 }),
  ])
  assert.deepEqual(all.map((swap) => swap.id), [3, 2, 1])
})

test('what a swap stopped is told apart', () => {
  const model = { name: 'aeon', state: 'off' }
  assert.equal(isStopped(model, swap([])), true)
  assert.equal(isStopped({ name: 'other', state: 'off' }, swap([])), false)
  assert.equal(isStopped({ name: 'aeon', state: 'stopping' }, swap([])), false)
  assert.equal(isStopped(model, swap([], { outcome: 'degraded' })), false)
  assert.equal(isStopped(model, null), false)
})

test('who listens hears what happens', () => {
  const words = { moves: () => 'aeon → genesis', doing: (step: string) => `doing ${step}` }
  const event = (what: object) => ({ id: 1, at_ms: 0, ...what }) as Event
  assert.equal(announced(event({ event: 'swap_step', swap: 7, step: step('released', 'began') }), words), 'doing released.')
  assert.equal(announced(event({ event: 'swap_step', swap: 7, step: step('released', 'done') }), words), '')
  const failed = swap([], { outcome: 'restored', reason: 'it ran out of memory' })
  assert.equal(announced(event({ event: 'swap_ended', swap: failed }), words), 'aeon → genesis failed: it ran out of memory.')
})
