/** What the page knows: the newest picture, events as they come, and whether any of it still holds. */

import * as api from './api.ts'
import { Failed } from './api.ts'
import { moves, stepDoing } from './format.ts'
import { append, samplesOf, type Series } from './series.ts'
import { announced, merged, withStep } from './swap.ts'
import type { ApiProblem, Event, Forecast, Rights, Status, Step, Swap } from './types.ts'

/** Between two pictures, while somebody looks and while nobody does. */
const SEEN = 1_000
const HIDDEN = 15_000
/** A picture older than three of these is not true any more. */
export const OLD = 3 * SEEN + 1_000
/** Between two questions what we may do. */
const GREET = 60_000
/** Events that are kept to be shown. */
const EVENTS = 300

export class Live {
  status = $state.raw<Status | null>(null)
  /** Why there is no newer picture; null while there is. */
  lost = $state.raw<ApiProblem | null>(null)
  /** berthd's clock, as far as its last answer told it. */
  now = $state(Date.now())
  events = $state.raw<Event[]>([])
  swaps = $state.raw<Swap[]>([])
  seen = $state.raw<Series[]>([])
  rights = $state<Rights>('read')
  user = $state<string | null>(null)
  /** For those who listen. */
  said = $state('')
  /** The swap that was begun here last: its asker is led to it. */
  mine = $state<number | null>(null)
  /** Another berthd than the one that sent this page. */
  renewed = $state(false)

  /** Steps that the plans of swaps begun here foresaw. */
  private plans = new Map<number, Forecast[]>()
  private live = $state.raw<Swap | null>(null)
  private skew = 0
  private at = 0
  private lastEvent: number | null = null
  private source: EventSource | null = null
  private timer: ReturnType<typeof setTimeout> | undefined
  private opened = Date.now()
  private greeted = 0

  /** How old the picture is. */
  get age(): number {
    return this.status === null ? 0 : Math.max(this.now - this.skew - this.at, 0)
  }

  /** Whether the picture may be wrong by now: nothing is done on its word. */
  get old(): boolean {
    return this.lost !== null || this.status === null || this.age > OLD
  }

  get mayPlan(): boolean {
    return this.rights === 'plan' || this.rights === 'operate'
  }

  get mayOperate(): boolean {
    return this.rights === 'operate'
  }

  /** The swap under way, and how long ago it was as it is told. */
  get swap(): Swap | null {
    return this.live
  }

  ahead(id: number): Forecast[] {
    return this.plans.get(id) ?? []
  }

  start() {
    const tick = setInterval(() => {
      this.now = Date.now() + this.skew
    }, 200)
    const seen = () => {
      if (document.hidden) this.hangUp()
      else void this.look()
    }
    document.addEventListener('visibilitychange', seen)
    void this.look()
    return () => {
      clearInterval(tick)
      clearTimeout(this.timer)
      document.removeEventListener('visibilitychange', seen)
      this.hangUp()
    }
  }

  /** Asks now, and again after a while. */
  async look() {
    clearTimeout(this.timer)
    try {
      const anew = this.status === null || this.lost !== null
      const status = await api.status()
      this.take(status)
      // A session ends after a while, and a token may be taken away.
      if (anew || Date.now() - this.greeted > GREET) await this.greet()
      if (!document.hidden) this.listen()
    } catch (error) {
      this.lost = error instanceof Failed ? error.problem : unexpected(error)
      this.hangUp()
    }
    clearTimeout(this.timer)
    this.timer = setTimeout(() => void this.look(), document.hidden ? HIDDEN : SEEN)
  }

  private take(status: Status) {
    this.renewed ||= this.status !== null && this.status.version !== status.version
    this.at = Date.now()
    this.skew = status.at_ms - this.at
    this.now = status.at_ms
    this.status = status
    this.lost = null
    this.live = status.swap
    this.seen = append(this.seen, samplesOf(status))
    if (status.last_swap) this.swaps = merged(this.swaps, [status.last_swap])
  }

  /** After the connection is there anew: who are we, and what happened meanwhile. */
  private async greet() {
    this.greeted = Date.now()
    const session = await api.session()
    this.rights = session.rights
    this.user = session.user
    const swaps = await api.swapHistory(50).catch(() => null)
    if (swaps) this.swaps = merged(this.swaps, swaps)
  }

  private listen() {
    if (this.source !== null) return
    const source = api.events(this.lastEvent)
    this.source = source
    source.onmessage = (message) => this.hear(JSON.parse(message.data as string) as Event)
    // Anew with the last id that was seen, once a picture says that berthd is there.
    source.onerror = () => this.hangUp()
  }

  private hangUp() {
    this.source?.close()
    this.source = null
  }

  private hear(event: Event) {
    if (this.lastEvent !== null && event.id <= this.lastEvent) return
    this.lastEvent = event.id
    if (event.event === 'swap_step') this.step(event.swap, event.step)
    else this.events = [event, ...this.events].slice(0, EVENTS)
    if (event.event === 'swap_ended') {
      this.swaps = merged(this.swaps, [event.swap])
      if (this.live?.id === event.swap.id) this.live = null
    }
    if (event.event === 'swap_began' && this.isNews(event)) this.live = event.swap
    if (this.isNews(event)) {
      const text = announced(event, { moves, doing: (step) => capital(stepDoing(step)) })
      if (text !== '') this.said = text
      // What changed is looked at without waiting for its turn.
      if (event.event !== 'swap_step') void this.look()
    }
  }

  private isNews(event: Event): boolean {
    return event.at_ms - this.skew >= this.opened - 1000 && !document.hidden
  }

  private step(id: number, step: Step) {
    if (this.live?.id === id) this.live = withStep(this.live, step)
  }

  /** A swap that was begun here, with what its plan foresaw. */
  began(id: number, steps: Forecast[]) {
    this.plans.set(id, steps)
    this.mine = id
    void this.look()
  }
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

function unexpected(error: unknown): ApiProblem {
  return {
    status: 0,
    code: 'page',
    title: `this page failed: ${error instanceof Error ? error.message : String(error)}`,
    hints: ['reload the page'],
  }
}
