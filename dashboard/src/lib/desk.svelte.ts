/** What an operator has open: a request that is being planned, a log that is read. */

import type { Request } from './types.ts'

export class Desk {
  asked = $state.raw<Request | null>(null)
  reading = $state<string | null>(null)

  plan(request: Request) {
    this.reading = null
    this.asked = request
  }

  read(model: string) {
    this.asked = null
    this.reading = model
  }
}
