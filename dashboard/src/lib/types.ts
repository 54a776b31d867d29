/**
 * What berthd's API tells, as far as the page shows it: `report` in berth-core is where it is defined. Moments
 * (`*_ms` of events, `since_ms`, `at_ms`, `began_ms`) are wall-clock milliseconds, durations milliseconds, memory bytes.
 */

/** A measured value, or why there is none. */
export type Known<T> = { value: T } | { unknown: string }

export type Verb =
  | 'switch'
  | 'start'
  | 'stop'
  | 'stop_all'
  | 'restart'
  | 'back'
  | 'retry'
  | 'restore'
  | 'load'

export interface Request {
  verb: Verb
  model?: string | null
  set?: Record<string, string>
}

export interface Status {
  schema: number
  node: string
  version: string
  at_ms: number
  uptime_ms: number | null
  default: string | null
  home: string[]
  gpus: Known<Gpu[]>
  host: Known<Host>
  models: Model[]
  swap: Swap | null
  last_swap: Swap | null
  problems: Problem[]
}

export interface Gpu {
  index: number
  id: string
  name: string
  age_ms: number
  memory: Known<Balance>
  suspect: string | null
  holders: Known<Holder[]>
  temperature_c: number | null
  power_w: number | null
  utilization_percent: number | null
}

export interface Balance {
  total: number
  reserved: number
  used: number
  free: number
  foreign: number
  kept: number
  headroom: number
}

export interface Holder {
  name: string
  ours: boolean
  unit: string | null
  pids: number[]
  memory: Known<number>
}

export interface Host {
  total: number
  available: number
}

export type ModelState =
  | 'serving'
  | 'loading'
  | 'stopping'
  | 'off'
  | 'too_big'
  | 'failed'
  | 'quarantined'
  | 'retired'

export interface Model {
  name: string
  state: ModelState
  gpus: number[]
  memory: number | null
  since_ms: number | null
  address: string
  aliases: string[]
  to_switch_ms: number | null
  short: number | null
  last_error: string | null
  predecessor: string | null
  stands_in_for: string | null
  guest: { cause: string; idle_ms: number } | null
  requests: {
    total: number
    under_way: number
    waiting: number
    first_token_ms: number | null
    tokens_per_second: number | null
    last_used_ms: number | null
  }
}

export interface Problem {
  code: string
  subject: string
  since_ms: number
  text: string
  next: string
}

export type StepName =
  | 'checked'
  | 'prewarmed'
  | 'drained'
  | 'stopped'
  | 'released'
  | 'started'
  | 'ready'
  | 'restored'

export interface Step {
  step: StepName
  state: 'began' | 'done' | 'failed' | 'skipped'
  rollback: boolean
  model: string | null
  elapsed_ms: number
  expected_ms: number | null
  detail: string
}

export interface Swap {
  id: number
  verb: Verb
  model: string | null
  by: { user: string } | null
  stops: string[]
  starts: string[]
  gpus: number[]
  began_ms: number
  elapsed_ms: number
  expected_ms: number | null
  steps: Step[]
  outcome: 'done' | 'restored' | 'degraded' | null
  reason: string | null
  cancelled?: boolean
  failure: { class: string; line: string } | null
  held_at_exit: number | null
  early_start_would_fail: boolean
  gap_ms: number | null
  serving: string[]
  undo: string | null
}

export interface Forecast {
  step: StepName
  model: string | null
  expected_ms: number | null
}

export interface GpuChange {
  index: number
  total: number
  unusable: number
  foreign: number
  foreign_by: string[]
  before: [string, number][]
  after: [string, number][]
  needs: number
  available: number
}

export type Outcome =
  | { outcome: 'fits'; spare: number }
  | { outcome: 'short'; by: number; text: string }
  | { outcome: 'unknown'; text: string }

export interface Plan {
  request: Request
  verdict:
    | { verdict: 'go' }
    | { verdict: 'nothing'; text: string }
    | { verdict: 'refused'; code: string; text: string; hints: string[] }
  stops: string[]
  starts: string[]
  gpus: GpuChange[]
  tried: { way: string; outcome: Outcome }[]
  steps: Forecast[]
}

export interface Accepted {
  swap: number | null
  after: number
  plan: Plan
}

export type Event = { id: number; at_ms: number } & (
  | { event: 'swap_began'; swap: Swap }
  | { event: 'swap_ended'; swap: Swap }
  | { event: 'swap_step'; swap: number; step: Step }
  | { event: 'model'; model: string; state: ModelState; text: string }
  | { event: 'problem_began'; problem: Problem }
  | { event: 'problem_ended'; code: string; text: string }
)

/** RFC 9457's members, as berthd fills them. */
export interface ApiProblem {
  status: number
  code: string
  title: string
  hints?: string[]
  plan?: Plan | null
}

export type Rights = 'none' | 'read' | 'plan' | 'operate'

export interface Session {
  user: string | null
  rights: Rights
}

/** One device's use over time; null is what was unknown. */
export interface DeviceHistory {
  id: string
  index: number | null
  total: number
  samples: Sample[]
}

export interface Sample {
  at_ms: number
  used: number | null
  kept: number | null
  foreign: number | null
  free: number | null
}
