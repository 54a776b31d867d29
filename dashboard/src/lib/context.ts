/** What every part of the page may ask for. */

import { createContext } from 'svelte'
import type { Desk } from './desk.svelte.ts'
import type { Live } from './live.svelte.ts'

export const [getLive, setLive] = createContext<Live>()
export const [getDesk, setDesk] = createContext<Desk>()
