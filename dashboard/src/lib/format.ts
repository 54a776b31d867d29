/** Words and figures, as berthctl writes them. */

import type { ModelState, Step, StepName, Swap, Verb } from './types.ts'

const GIB = 2 ** 30
const MIB = 2 ** 20

/** `14.3 GiB`, `420 MiB`, `512 B`. */
export function bytes(n: number): string {
  if (n / GIB >= 0.95) return `${(n / GIB).toFixed(1)} GiB`
  if (n >= MIB || n === 0) return `${Math.round(n / MIB)} MiB`
  return `${n} B`
}

/** GiB with one decimal and no unit. */
export function gib(n: number): string {
  const value = n / GIB
  return value > 0 && value < 0.05 ? '<0.1' : value.toFixed(1)
}

/** A measured duration: `0.0 s`, `59.9 s`, `1m04s`, `1h02m`. */
export function took(ms: number): string {
  return ms < 59_950 ? `${(Math.max(ms, 0) / 1000).toFixed(1)} s` : long(ms)
}

/** A duration that is a guess: `0.4 s`, `19 s`, `1m04s`. */
export function about(ms: number): string {
  if (ms < 9_950) return `${(ms / 1000).toFixed(1)} s`
  return ms < 59_500 ? `${Math.round(ms / 1000)} s` : long(ms)
}

function long(ms: number): string {
  const seconds = Math.round(ms / 1000)
  const two = (n: number) => String(n).padStart(2, '0')
  return seconds < 3600
    ? `${Math.floor(seconds / 60)}m${two(seconds % 60)}s`
    : `${Math.floor(seconds / 3600)}h${two(Math.floor(seconds / 60) % 60)}m`
}

/** A long while in its largest unit: `40 s`, `12 min`, `5 h`, `3 d`. */
export function age(ms: number): string {
  const seconds = Math.floor(Math.max(ms, 0) / 1000)
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`
  return `${Math.floor(seconds / 86_400)} d`
}

/** How long ago a moment is: `now`, `12 min ago`. */
export function ago(now: number, at: number): string {
  return now - at < 1000 ? 'now' : `${age(now - at)} ago`
}

/** `GPU 0`, `GPU 0+1`, `GPU 0-7`; nothing for none. */
export function gpus(indices: number[]): string {
  const [first, ...rest] = indices
  if (first === undefined) return ''
  const run = rest.every((index, i) => index === first + i + 1)
  return run && rest.length > 1 ? `GPU ${first}-${rest.at(-1)}` : `GPU ${indices.join('+')}`
}

/** `aeon`, `aeon and embedder`, `a, b and c`. */
export function names(all: string[], none = 'nothing'): string {
  if (all.length === 0) return none
  return all.length === 1 ? all[0]! : `${all.slice(0, -1).join(', ')} and ${all.at(-1)}`
}

/** Time of day by the reader's clock: `14:03:22`; with the date where that is another day. */
export function clock(at: number, now: number): string {
  const time = new Date(at)
  const two = (n: number) => String(n).padStart(2, '0')
  const day = `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`
  const of = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`
  return new Date(now).toDateString() === time.toDateString() ? of : `${day} ${of}`
}

const STATES: Record<ModelState, string> = {
  serving: 'serving',
  loading: 'loading',
  stopping: 'stopping',
  off: 'off',
  too_big: 'too big',
  failed: 'failed',
  quarantined: 'quarantined',
  retired: 'retired',
}

export function state(of: ModelState): string {
  return STATES[of] ?? String(of)
}

/** As typed after `berthctl`. */
export function verb(of: Verb): string {
  return of === 'stop_all' ? 'stop --all' : of
}

/** What a step is called while it goes on, and when it is done. */
const STEPS: Record<StepName, [string, string]> = {
  checked: ['checking', 'checked'],
  prewarmed: ['reading ahead', 'read ahead'],
  drained: ['letting answers end', 'drained'],
  stopped: ['stopping', 'stopped'],
  released: ['waiting for memory', 'released'],
  started: ['starting', 'started'],
  ready: ['loading', 'ready'],
  restored: ['restoring', 'restored'],
}

export function stepDoing(of: StepName): string {
  return STEPS[of]?.[0] ?? of
}

export function stepDone(of: StepName): string {
  return STEPS[of]?.[1] ?? of
}

/** What a step says, with its model where that is not said yet. */
export function stepDetail(step: Step): string {
  if (step.model === null || step.detail.includes(step.model)) return step.detail
  if (step.detail === '') return step.model
  return ['checked', 'released'].includes(step.step) ? step.detail : `${step.model}: ${step.detail}`
}

/** What a swap does, in a few words: `aeon → genesis`. */
export function moves(of: Pick<Swap, 'verb' | 'stops' | 'starts'>): string {
  const stops = of.stops.join(' + ')
  const starts = of.starts.join(' + ')
  if (stops === '' && starts === '') return verb(of.verb)
  if (of.verb === 'restore' && starts !== '') return `restore ${starts}`
  if (stops === starts) return `restart ${starts}`
  if (stops === '') return `start ${starts}`
  if (starts === '') return `stop ${stops}`
  return `${stops} → ${starts}`
}

/** How a swap ended, in words. */
export function outcome({ outcome, cancelled }: Pick<Swap, 'outcome' | 'cancelled'>): string {
  const what = cancelled ? 'cancelled' : 'failed'
  switch (outcome) {
    case 'done':
      return 'done'
    case 'restored':
      return `${what}, restored`
    case 'degraded':
      return `${what}, degraded`
    default:
      return 'under way'
  }
}

/** A line of a log without the codes that colour it in a terminal. */
export function plain(text: string): string {
  return text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, '').replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, '')
}
