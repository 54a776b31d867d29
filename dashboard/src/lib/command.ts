/** Commands of berthctl that berthd gives as a next step, as what the page itself can do. */

import type { Request, Verb } from './types.ts'

const VERBS: Verb[] = ['switch', 'start', 'stop', 'restart', 'back', 'retry']

/** The request that a command stands for; null for one that the page can't do. */
export function request(command: string): Request | null {
  const [program, ...words] = command.trim().split(/\s+/)
  if (program !== 'berthctl') return null
  if (words[0] === 'plan') words.shift()
  const word = words.shift()
  const verb = VERBS.find((verb) => verb === word)
  if (verb === undefined) return null
  const set: Record<string, string> = {}
  const left: string[] = []
  while (words.length > 0) {
    const next = words.shift()!
    if (next !== '--set') {
      left.push(next)
      continue
    }
    const [key, ...rest] = (words.shift() ?? '').split('=')
    if (!key || rest.length === 0) return null
    set[key] = rest.join('=')
  }
  if (verb === 'stop' && left.join(' ') === '--all') return { verb: 'stop_all' }
  if (verb === 'back') return left.length === 0 ? { verb } : null
  const model = left[0]
  // `MODEL` stands for one that the reader chooses.
  if (model === undefined || left.length > 1 || model.startsWith('-') || model === 'MODEL') return null
  return Object.keys(set).length > 0 ? { verb, model, set } : { verb, model }
}

/** A problem's next step, taken apart into text and commands: `berthctl logs a; then berthctl retry a`. */
export function nextSteps(text: string): string[] {
  return text
    .split(/;\s+(?:then |or )?/)
    .map((part) => part.trim())
    .filter((part) => part !== '')
}

/** The model whose log a command shows. */
export function logsOf(command: string): string | null {
  return /^berthctl logs ([^\s-]\S*)$/.exec(command)?.[1] ?? null
}
