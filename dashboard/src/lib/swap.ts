/** A swap as a timeline: its steps in a row, what each took or is expected to take. */

import type { Event, Forecast, Step, StepName, Swap } from './types.ts'

export interface Piece {
  step: StepName
  model: string | null
  state: 'done' | 'failed' | 'running' | 'ahead'
  rollback: boolean
  /** Of the row, 0 to 1. */
  from: number
  to: number
  elapsed_ms: number
  expected_ms: number | null
  detail: string
}

/** What there is of a step that nobody measured yet, so that it shows. */
const UNMEASURED = 1000
/** A step is at least this much of the row. */
const LEAST = 0.012

/** Steps of a swap whose plan is not at hand, in their order. */
const USUAL: StepName[] = ['stopped', 'released', 'ready']

/**
 * The row of a swap's steps. `since` is how long ago the swap was as it is told; `ahead` what its plan foresaw.
 * While it goes on what is still to come is drawn as long as it is expected to take.
 */
export function pieces(swap: Swap, since: number, ahead: Forecast[]): Piece[] {
  const told = swap.steps.filter((step) => step.state !== 'skipped')
  const row = told.map((step) => {
    const running = step.state === 'began'
    const elapsed_ms = step.elapsed_ms + (running ? since : 0)
    const state = running ? 'running' : step.state === 'failed' ? 'failed' : 'done'
    const length = running ? Math.max(elapsed_ms, step.expected_ms ?? 0) : elapsed_ms
    return { ...pick(step), state, elapsed_ms, length } as const
  })
  // What is restored is told as one step that holds all those of the way back.
  const shown = row.filter((piece) => piece.step !== 'restored')
  const coming = swap.outcome === null && !told.some((step) => step.rollback) ? comingUp(swap, told, ahead) : []
  const next = coming.map((step) => ({
    step: step.step,
    model: step.model,
    rollback: false,
    expected_ms: step.expected_ms,
    detail: '',
    state: 'ahead' as const,
    elapsed_ms: 0,
    length: step.expected_ms ?? UNMEASURED,
  }))
  return lay([...shown, ...next])
}

function pick(step: Step) {
  const { model, rollback, expected_ms, detail } = step
  return { step: step.step, model, rollback, expected_ms, detail }
}

function comingUp(swap: Swap, told: Step[], ahead: Forecast[]): Forecast[] {
  const done = (step: Forecast) =>
    told.some((was) => was.step === step.step && (step.model === null || was.model === null || was.model === step.model))
  if (ahead.length > 0) return ahead.filter((step) => !done(step))
  const usual = USUAL.filter((step) => (step === 'ready' ? swap.starts.length > 0 : swap.stops.length > 0))
  return usual.map((step) => ({ step, model: null, expected_ms: null })).filter((step) => !done(step))
}

function lay<T extends { length: number }>(row: T[]): (Omit<T, 'length'> & { from: number; to: number })[] {
  const total = row.reduce((sum, piece) => sum + piece.length, 0) || 1
  const shares = row.map((piece) => Math.max(piece.length / total, LEAST))
  const all = shares.reduce((sum, share) => sum + share, 0) || 1
  let at = 0
  return row.map(({ length: _, ...piece }, i) => {
    const from = at
    at += (shares[i] ?? 0) / all
    return { ...piece, from, to: at }
  })
}

/** A swap with one more step that was told of it. */
export function withStep(swap: Swap, step: Step): Swap {
  const same = (was: Step) =>
    was.step === step.step && was.model === step.model && was.rollback === step.rollback && was.state === 'began'
  const at = swap.steps.findLastIndex(same)
  const steps = at < 0 ? [...swap.steps, step] : swap.steps.with(at, step)
  return { ...swap, steps }
}

/** Swaps newest first, each once, with what an event says of one taken in. */
export function withEvent(swaps: Swap[], event: Event): Swap[] {
  if (event.event !== 'swap_ended') return swaps
  return merged(swaps, [event.swap])
}

/** Ended swaps of two lists, newest first, each once. */
export function merged(a: Swap[], b: Swap[], most = 50): Swap[] {
  const all = new Map<number, Swap>()
  for (const swap of [...a, ...b]) if (swap.outcome !== null) all.set(swap.id, swap)
  return [...all.values()].sort((x, y) => y.id - x.id).slice(0, most)
}

/** One sentence for those who listen. */
export function announced(event: Event, words: { moves: (swap: Swap) => string; doing: (step: StepName) => string }): string {
  switch (event.event) {
    case 'swap_began':
      return `${words.moves(event.swap)} began.`
    case 'swap_step':
      return event.step.state === 'began' ? `${words.doing(event.step.step)}.` : ''
    case 'swap_ended': {
      const { swap } = event
      if (swap.outcome === 'done') return `${words.moves(swap)} is done.`
      return `${words.moves(swap)} failed: ${swap.reason ?? 'no reason is known'}.`
    }
    case 'problem_began':
      return `Problem: ${event.problem.text}.`
    case 'problem_ended':
      return `${event.text}.`
    default:
      return ''
  }
}

/** Whether a model is off because the swap under way stopped it. */
export function isStopped(model: { name: string; state: string }, swap: Swap | null): boolean {
  return model.state === 'off' && swap !== null && swap.outcome === null && swap.stops.includes(model.name)
}
