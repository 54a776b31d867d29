/** Who holds what of a device, as the segments of a bar. */

import type { Gpu, GpuChange, Host, Known } from './types.ts'

/** What a segment stands for; each kind looks its own way. */
export type Kind =
  | 'model' // a model of ours has it
  | 'kept' // kept for a model that has not taken it yet
  | 'foreign' // a program that is not ours has it
  | 'nobody' // in use, and by whom is not known
  | 'reserved' // the driver's own
  | 'headroom' // never given to a model
  | 'free'
  | 'short' // missing: beyond the end of the device

export interface Segment {
  kind: Kind
  /** A model's or program's name, else what it is in words. */
  label: string
  bytes: number
  /** More to say: units and processes. */
  note: string
  /** Whose colour it has, where the label says more than the name. */
  model?: string
}

/** A device's bar. `unknown` says why there is none. */
export type Bar = { total: number; segments: Segment[]; unlisted: string[] } | { unknown: string }

/** What nobody is listed for is named from here on; below it is rounding. */
const NOTABLE = 100 * 2 ** 20

export function value<T>(known: Known<T>): T | null {
  return 'value' in known ? known.value : null
}

/** Who holds what of a GPU: models, others, the rest. `loading`: the models on their way up here. */
export function gpuBar(gpu: Gpu, loading: string[]): Bar {
  if ('unknown' in gpu.memory) return gpu.memory
  const { total, reserved, used, kept, headroom, foreign } = gpu.memory.value
  const segments: Segment[] = []
  const unlisted: string[] = []
  let listed = 0
  let ours = 0
  if ('value' in gpu.holders) {
    for (const holder of gpu.holders.value) {
      const name = holder.name || `pid ${holder.pids[0] ?? '?'}`
      const bytes = value(holder.memory)
      if (bytes === null) {
        unlisted.push(name)
        continue
      }
      listed += bytes
      if (holder.ours) ours += bytes
      segments.push({ kind: holder.ours ? 'model' : 'foreign', label: name, bytes, note: whose(holder) })
    }
    segments.sort((a, b) => Number(b.kind === 'model') - Number(a.kind === 'model') || b.bytes - a.bytes)
    const rest = used - listed
    if (rest > 0 && (rest >= NOTABLE || unlisted.length > 0)) {
      const label = unlisted.length > 0 ? `${unlisted.join(', ')}: how much is not told` : 'by nobody that is listed'
      segments.push({ kind: 'nobody', label, bytes: rest, note: '' })
    }
  } else {
    ours = Math.max(used - foreign, 0)
    segments.push({ kind: 'nobody', label: `in use, by whom is unknown: ${gpu.holders.unknown}`, bytes: used, note: '' })
  }
  const free = Math.max(total - reserved - used, 0)
  const waiting = Math.min(Math.max(kept - ours, 0), free)
  const never = Math.min(headroom, free - waiting)
  const shown = waiting >= NOTABLE ? waiting : 0
  // Of several nobody says what is kept for which.
  const only = loading.length === 1 ? loading[0] : undefined
  if (shown > 0) {
    const label = `kept for ${only ?? 'models'}`
    segments.push({ kind: 'kept', label, bytes: shown, note: 'not used yet', ...(only && { model: only }) })
  }
  const rest: [Kind, string, number][] = [
    ['free', 'free', free - never - shown],
    ['headroom', 'headroom', never],
    ['reserved', 'the driver’s own', reserved],
  ]
  for (const [kind, label, bytes] of rest) if (bytes > 0) segments.push({ kind, label, bytes, note: '' })
  return { total, segments, unlisted }
}

function whose(holder: { unit: string | null; pids: number[] }): string {
  const pids = `${holder.pids.length === 1 ? 'pid' : 'pids'} ${holder.pids.join(', ')}`
  return holder.unit ? `${holder.unit}, ${pids}` : pids
}

/** The host's memory: what is in use and what is available. */
export function hostBar(host: Known<Host>): Bar {
  if ('unknown' in host) return host
  const { total, available } = host.value
  const segments: Segment[] = [
    { kind: 'nobody', label: 'in use', bytes: total - available, note: '' },
    { kind: 'free', label: 'available', bytes: available, note: '' },
  ]
  return { total, segments, unlisted: [] }
}

/** One GPU of a plan, before or after it. What does not fit hangs over the end. */
export function changeBar(gpu: GpuChange, when: 'before' | 'after'): { total: number; segments: Segment[] } {
  const models = gpu[when].map(([label, bytes]): Segment => ({ kind: 'model', label, bytes, note: '' }))
  const foreign = gpu.foreign_by.length > 0 ? gpu.foreign_by.join(', ') : 'others'
  const used = models.reduce((sum, model) => sum + model.bytes, gpu.foreign + gpu.unusable)
  const segments = [...models]
  if (gpu.foreign > 0) segments.push({ kind: 'foreign', label: foreign, bytes: gpu.foreign, note: '' })
  if (used < gpu.total) segments.push({ kind: 'free', label: 'free', bytes: gpu.total - used, note: '' })
  segments.push({ kind: 'headroom', label: 'the driver’s own and headroom', bytes: gpu.unusable, note: '' })
  if (used > gpu.total) segments.push({ kind: 'short', label: 'short by', bytes: used - gpu.total, note: '' })
  return { total: Math.max(gpu.total, used), segments: used > gpu.total ? cut(segments, used - gpu.total) : segments }
}

/** Takes what is short off the models' ends, so that the bar is as long as what was asked for. */
function cut(segments: Segment[], over: number): Segment[] {
  const last = segments.findLastIndex((segment) => segment.kind === 'model')
  return segments.map((segment, i) =>
    i === last ? { ...segment, bytes: Math.max(segment.bytes - over, 0) } : segment,
  )
}

/** A model's colour is its place among all that are declared, so that it stays what it is. */
export function hue(model: string, all: string[]): number {
  const at = all.indexOf(model)
  return at < 0 ? 0 : (at % 8) + 1
}

/** The bar in one sentence, for those who can't see it. */
export function spoken(bar: Bar, bytes: (n: number) => string): string {
  if ('unknown' in bar) return `unknown: ${bar.unknown}`
  return bar.segments.map((segment) => `${segment.label} ${bytes(segment.bytes)}`).join(', ')
}
