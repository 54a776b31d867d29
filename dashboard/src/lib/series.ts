/** Memory over time: what berthd recorded, and what the page itself saw since. */

import type { DeviceHistory, Sample, Status } from './types.ts'

export interface Series {
  id: string
  index: number | null
  total: number
  samples: Sample[]
}

/** An hour of seconds. */
const KEPT = 3600

/** What a status says of each device at its moment. What is unknown is null, and the host comes last. */
export function samplesOf(status: Status): Series[] {
  const at_ms = status.at_ms
  const gpus = 'value' in status.gpus ? status.gpus.value : []
  const all = gpus.map((gpu): Series => {
    const known = 'value' in gpu.memory ? gpu.memory.value : null
    const sample = {
      at_ms: at_ms - gpu.age_ms,
      used: known?.used ?? null,
      kept: known?.kept ?? null,
      foreign: known?.foreign ?? null,
      free: known?.free ?? null,
    }
    return { id: gpu.id, index: gpu.index, total: known?.total ?? 0, samples: [sample] }
  })
  if ('value' in status.host) {
    const { total, available } = status.host.value
    const sample = { at_ms, used: total - available, kept: null, foreign: null, free: available }
    all.push({ id: 'host', index: null, total, samples: [sample] })
  }
  return all
}

/** Adds what was seen to what was seen before; the oldest goes. A reading that is told twice counts once. */
export function append(seen: Series[], news: Series[]): Series[] {
  const known = new Map(seen.map((series) => [series.id, series]))
  for (const { id, index, total, samples } of news) {
    const was = known.get(id)
    const last = was?.samples.at(-1)?.at_ms ?? 0
    // A wall clock a few milliseconds off makes no new reading.
    const fresh = samples.filter((sample) => sample.at_ms > last + 200)
    const all = [...(was?.samples ?? []), ...fresh].slice(-KEPT)
    known.set(id, { id, index, total: total || (was?.total ?? 0), samples: all })
  }
  return [...known.values()]
}

/** What was recorded, and of what the page saw the part that is newer. */
export function joined(history: DeviceHistory[], seen: Series[], since: number): Series[] {
  const ids = new Set([...history, ...seen].map((series) => series.id))
  const both = [...ids].map((id) => {
    const recorded = history.find((series) => series.id === id)
    const own = seen.find((series) => series.id === id)
    const last = recorded?.samples.at(-1)?.at_ms ?? 0
    const newer = (own?.samples ?? []).filter((sample) => sample.at_ms > last && sample.at_ms >= since)
    const base = own ?? recorded
    const samples = [...(recorded?.samples ?? []), ...newer]
    return { id, index: base?.index ?? null, total: own?.total || (recorded?.total ?? 0), samples }
  })
  // GPUs by their number, the host last.
  return both.sort((a, b) => (a.index ?? Infinity) - (b.index ?? Infinity))
}

/**
 * Columns to draw: seconds, then GiB in use and kept. Between samples that are much further apart than usual there is a
 * gap, and so there is where something was unknown: no line says what nobody measured.
 */
export function columns(samples: Sample[]): [number[], (number | null)[], (number | null)[]] {
  const at: number[] = []
  const used: (number | null)[] = []
  const kept: (number | null)[] = []
  const far = 3 * usual(samples) + 1000
  const gib = (n: number | null) => (n === null ? null : n / 2 ** 30)
  let last: number | null = null
  for (const sample of samples) {
    if (last !== null && sample.at_ms - last > far) {
      at.push((last + 1) / 1000)
      used.push(null)
      kept.push(null)
    }
    at.push(sample.at_ms / 1000)
    used.push(gib(sample.used))
    kept.push(gib(sample.kept))
    last = sample.at_ms
  }
  return [at, used, kept]
}

/** The median distance of two samples, in milliseconds. */
function usual(samples: Sample[]): number {
  const apart = samples.slice(1).map((sample, i) => sample.at_ms - (samples[i]?.at_ms ?? 0))
  return apart.sort((a, b) => a - b)[Math.floor(apart.length / 2)] ?? 1000
}
