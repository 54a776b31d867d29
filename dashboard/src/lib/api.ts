/** Asks berthd. Every answer that is none comes back as a problem with its next step. */

import type {
  Accepted,
  ApiProblem,
  DeviceHistory,
  Plan,
  Request,
  Session,
  Status,
  Swap,
} from './types.ts'

const ROOT = 'api/v1'
/** What takes longer than this is not worth waiting for; berthd's own deadline for a decision is longer. */
const SOON = 8_000
const DECISION = 200_000

/** An answer that is none. */
export class Failed extends Error {
  readonly problem: ApiProblem
  constructor(problem: ApiProblem) {
    super(problem.title)
    this.problem = problem
  }
}

async function ask<T>(path: string, init: RequestInit, deadline: number): Promise<T> {
  const response = await reach(path, init, AbortSignal.timeout(deadline))
  try {
    return (await response.json()) as T
  } catch {
    throw new Failed({
      status: response.status,
      code: 'no_json',
      title: 'what answers here is not berthd, or it broke off',
      hints: ['systemctl status berthd', 'reload the page'],
    })
  }
}

/** The answer's head; one that refuses is an error. */
async function reach(path: string, init: RequestInit, signal: AbortSignal): Promise<Response> {
  let response: Response
  try {
    response = await fetch(`${ROOT}/${path}`, { ...init, signal, cache: 'no-store', credentials: 'same-origin' })
  } catch (error) {
    const late = error instanceof DOMException && error.name === 'TimeoutError'
    throw new Failed({
      status: 0,
      code: 'unreachable',
      title: late ? 'berthd does not answer in time' : 'berthd can’t be reached',
      hints: ['systemctl status berthd', 'journalctl -u berthd -n 50'],
    })
  }
  if (!response.ok) throw new Failed(await problemOf(response))
  return response
}

async function problemOf(response: Response): Promise<ApiProblem> {
  const text = await response.text().catch(() => '')
  try {
    const problem = JSON.parse(text) as Partial<ApiProblem>
    if (typeof problem.title === 'string') return { code: '', ...problem, status: response.status, title: problem.title }
  } catch {
    // It comes from something before berthd.
  }
  return {
    status: response.status,
    code: 'http',
    title: `the answer was ${response.status} ${response.statusText}`.trim(),
    hints: ['reload the page', 'systemctl status berthd'],
  }
}

function post<T>(path: string, body: unknown): Promise<T> {
  const headers = { 'content-type': 'application/json' }
  return ask<T>(path, { method: 'POST', headers, body: JSON.stringify(body) }, DECISION)
}

/** Null where berthd has no such resource: an older one, or without history. */
async function orNull<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked
  } catch (error) {
    if (error instanceof Failed && error.problem.status === 404) return null
    throw error
  }
}

export const status = () => ask<Status>('status', {}, SOON)
export const session = () => ask<Session>('session', {}, SOON)
export const signOut = () => reach('session', { method: 'DELETE' }, AbortSignal.timeout(SOON))
export const plan = (request: Request) => post<Plan>('plan', request)
export const cancel = (id: number) => ask<Swap>(`swaps/${id}`, { method: 'DELETE' }, SOON)
export const begin = (request: Request) => post<Accepted>('swaps', request)

export async function deviceHistory(since_ms: number, until_ms: number, points: number) {
  const query = new URLSearchParams({
    since_ms: String(Math.floor(since_ms)),
    until_ms: String(Math.ceil(until_ms)),
    points: String(points),
  })
  const answer = await orNull(ask<{ devices: DeviceHistory[] }>(`history/devices?${query}`, {}, SOON))
  return answer?.devices ?? null
}

export async function swapHistory(last: number) {
  const answer = await orNull(ask<{ swaps: Swap[] }>(`history/swaps?last=${last}`, {}, SOON))
  return answer?.swaps ?? null
}

export function events(after: number | null): EventSource {
  return new EventSource(`${ROOT}/events?${after === null ? 'last=500' : `after=${after}`}`)
}

export interface LogLine {
  at_ms: number
  text: string
}

/** A model's log as it grows, a few lines at a time, until the signal ends it. */
export async function* logs(model: string, lines: number, signal: AbortSignal): AsyncGenerator<LogLine[]> {
  const path = `models/${encodeURIComponent(model)}/logs?follow=true&lines=${lines}`
  const response = await reach(path, {}, signal)
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  while (reader) {
    const { done, value } = await reader.read()
    if (done) return
    const whole = (rest + value).split('\n')
    rest = whole.pop() ?? ''
    const parsed = whole.filter((line) => line !== '').map((line) => JSON.parse(line) as LogLine)
    if (parsed.length > 0) yield parsed
  }
}
