// Drives the dashboard in Chromium, as an operator would. Arguments: the address that signs in, a folder for screenshots,
// the package with the browser's driver. What has to happen outside it asks for by a line `do: …` and waits for one back.
import { existsSync, mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [login, pictures, driver] = process.argv.slice(2)
const require = createRequire(`${driver}/package.json`)
const { chromium } = require('playwright-core')
const axe = require.resolve('axe-core/axe.min.js')
const base = new URL(login).origin
const SOON = 20_000

const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync)
if (!executablePath) throw new Error('there is no chromium: `make deps` installs it')
mkdirSync(pictures, { recursive: true })
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]()

async function outside(what) {
  console.log(`do: ${what}`)
  if ((await answers.next()).done) throw new Error(`nobody did: ${what}`)
}

function expect(what, condition, seen) {
  if (!condition) throw new Error(`${what}: ${typeof seen === 'string' ? seen : JSON.stringify(seen)}`)
}

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
const faults = []

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 }, colorScheme: 'light', ...options })
  context.setDefaultTimeout(SOON)
  const page = await context.newPage()
  page.on('pageerror', (error) => faults.push(`script: ${error.stack}`))
  page.on('console', (message) => {
    if (/Content.Security.Policy/i.test(message.text())) faults.push(message.text())
  })
  page.on('request', (request) => {
    if (!request.url().startsWith(base)) faults.push(`asked elsewhere: ${request.url()}`)
  })
  return page
}

/** What axe finds that keeps somebody out. */
async function accessible(page, where) {
  // The page's policy lets no script of others in but by the debugger.
  const found = await (await page.context().newCDPSession(page)).send('Runtime.evaluate', {
    expression: `(async () => { ${require('node:fs').readFileSync(axe, 'utf8')}
      const { violations } = await axe.run(document, { resultTypes: ['violations'] })
      return JSON.stringify(violations.map(({ id, impact, nodes }) => ({ id, impact, at: nodes.map((n) => n.html.slice(0, 160)) }))) })()`,
    awaitPromise: true,
    returnByValue: true,
  })
  const violations = JSON.parse(found.result.value)
  const serious = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical')
  expect(`axe on ${where}`, serious.length === 0, serious)
}

const wide = async (page) => page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth)
const shot = (page, name, fullPage = true) => page.screenshot({ path: `${pictures}/${name}.png`, fullPage })

try {
  // Who is not signed in sees everything and changes nothing.
  const page = await open()
  await page.goto(`${base}/`)
  const gpu = (index) => page.getByRole('article', { name: `GPU ${index}` })
  for (const index of [0, 1]) {
    await gpu(index).getByText('of 15.9 GiB in use').waitFor()
    expect(`GPU ${index} names aeon`, (await gpu(index).innerText()).includes('aeon'), await gpu(index).innerText())
  }
  await page.getByText('read only').waitFor()
  expect('nobody may switch', (await page.getByRole('button', { name: 'Switch genesis' }).count()) === 0, '')
  // A program's name is text, whatever is in it.
  expect('Xorg is named', (await gpu(0).innerText()).includes('Xorg'), await gpu(0).innerText())
  await gpu(1).getByText('<img src=x>').waitFor()
  expect('no image came of it', (await page.locator('img').count()) === 0, '')

  await page.goto(login)
  await page.getByText('frank', { exact: true }).waitFor()
  await page.getByText('failed, restored').first().waitFor()
  await page.getByText('Last error:').first().waitFor()
  await page.getByRole('row', { name: /aeon .* tok\/s/ }).waitFor()
  await accessible(page, 'the page')

  // What does not fit is refused with figures, before anything is touched.
  await page.getByRole('button', { name: 'Plan llama70b' }).click()
  const dialog = page.getByRole('dialog')
  await dialog.getByText('Refused, nothing is touched:').waitFor()
  await dialog.getByText(/^short by .* GiB$/).first().waitFor()
  expect('a refusal can’t be confirmed', (await dialog.getByRole('button', { name: 'Switch to' }).count()) === 0, '')
  await accessible(page, 'a refusal')
  await shot(page, 'refused', false)
  await page.keyboard.press('Escape')
  await dialog.waitFor({ state: 'detached' })

  // A switch, by the keyboard, followed to its end.
  await page.getByRole('button', { name: 'Switch genesis' }).focus()
  await page.keyboard.press('Enter')
  await dialog.getByText('aeon → genesis').waitFor()
  const confirm = dialog.getByRole('button', { name: 'Switch to genesis' })
  await page.waitForFunction(() => document.activeElement?.textContent === 'Switch to genesis')
  await accessible(page, 'a plan')
  await page.emulateMedia({ colorScheme: 'dark' })
  await accessible(page, 'a plan in the dark')
  await shot(page, 'plan', false)
  await page.emulateMedia({ colorScheme: 'light' })
  await confirm.press('Enter')
  const swap = page.getByRole('region', { name: 'aeon → genesis' })
  await swap.getByRole('listitem').filter({ hasText: 'waiting for memory, under way' }).waitFor()
  await page.waitForFunction(() => document.activeElement?.id === 'under-way')
  await swap.getByRole('listitem').filter({ hasText: 'loading, under way' }).waitFor()
  expect('what is to come is expected', /of about \d/.test(await swap.innerText()), await swap.innerText())
  await gpu(0).getByText('kept for genesis').first().waitFor()
  await page.getByRole('row', { name: /aeon .*stopped for genesis/ }).waitFor()
  await accessible(page, 'a switch under way')
  await shot(page, 'light')
  await swap.getByText('done').first().waitFor()
  await page.getByRole('row', { name: /genesis default .*serving/ }).waitFor()
  await page.getByText('genesis serves as default').waitFor()
  const said = page.getByRole('status')
  await said.getByText('aeon → genesis is done.').or(said.getByText(/memory|loading/i)).waitFor({ state: 'attached' })
  expect('the switch is among the past ones', (await page.getByRole('region', { name: 'Past switches' }).innerText()).includes('aeon → genesis'), '')

  // Its log, as it grows.
  await page.getByRole('button', { name: 'Log of genesis' }).click()
  await dialog.getByText('is listening on').first().waitFor()
  await outside('ask genesis')
  await dialog.getByRole('button', { name: 'Close' }).click()

  // Another one is given up while its memory is still held.
  await page.getByRole('button', { name: 'Switch aeon' }).click()
  await dialog.getByRole('button', { name: 'Switch to aeon' }).click()
  const unwanted = page.getByRole('region', { name: 'genesis → aeon' })
  await unwanted.getByRole('listitem').filter({ hasText: 'waiting for memory, under way' }).waitFor()
  await unwanted.getByRole('button', { name: 'Cancel' }).click()
  await accessible(page, 'a switch that is to be cancelled')
  await unwanted.getByRole('button', { name: 'Yes, cancel it' }).click()
  await unwanted.getByText('Cancelled:').waitFor()
  await unwanted.getByText('cancelled, restored').waitFor()
  await unwanted.getByText('frank cancelled it').first().waitFor()
  await page.getByRole('row', { name: /genesis default .*serving/ }).waitFor()

  // A lost GPU is unknown, not empty.
  await outside('lose 1')
  await gpu(1).getByText('Unknown:').waitFor()
  const lost = await gpu(1).innerText()
  expect('no figure of a lost GPU', !/\d of \d|GiB in use|\d °C/.test(lost), lost)
  await page.getByRole('heading', { name: /problem/ }).waitFor()
  await page.getByText('GPU 1 is unknown, nothing is placed there').first().waitFor()
  await accessible(page, 'a lost GPU')
  await shot(page, 'lost-gpu')
  await outside('restore 1')
  await gpu(1).getByText('of 15.9 GiB in use').waitFor()

  // Dark, and on a telephone.
  const cookies = await page.context().cookies()
  for (const [name, options] of [
    ['dark', { colorScheme: 'dark' }],
    ['narrow', { viewport: { width: 360, height: 780 }, colorScheme: 'dark' }],
  ]) {
    const other = await open(options)
    await other.context().addCookies(cookies)
    await other.goto(`${base}/`)
    await other.getByRole('article', { name: 'GPU 1' }).getByText('of 15.9 GiB in use').waitFor()
    await other.getByRole('button', { name: 'Restart genesis' }).waitFor()
    await accessible(other, name)
    expect(`${name} fits its screen`, (await wide(other)) <= 0, await wide(other))
    await shot(other, name)
    await other.context().close()
  }

  // berthd ends: the page says so, and offers nothing that it can't do. Once it is back so is the page, by itself.
  await outside('stop berthd')
  await page.getByRole('heading', { name: 'Connection lost' }).waitFor()
  await page.getByText(/^The picture is .* old\.$/).waitFor()
  expect('nothing can be asked', await page.getByRole('button', { name: 'Switch aeon' }).isDisabled(), '')
  expect('it looks old', await page.locator('main.old').count(), '')
  await accessible(page, 'a lost connection')
  await shot(page, 'connection-lost', false)
  await outside('start berthd')
  await page.getByRole('heading', { name: 'Connection lost' }).waitFor({ state: 'detached' })
  // Its sessions ended with it.
  await page.getByText('read only').waitFor()

  // Without a script.
  const plain = await open({ javaScriptEnabled: false })
  await plain.goto(`${base}/plain`)
  for (const text of ['GPU 0', 'GPU 1', '<img src=x>', 'genesis', 'dashboard']) await plain.getByText(text).first().waitFor()
  await accessible(await (async () => { const p = await open(); await p.goto(`${base}/plain`); return p })(), 'the plain page')
  await shot(plain, 'plain')

  expect('no fault on the way', faults.length === 0, faults)
  console.log('passed')
  await browser.close()
  process.exit(0)
} catch (error) {
  console.log(`failed: ${error.stack}`)
  for (const context of browser.contexts())
    for (const page of context.pages()) {
      await shot(page, `failed-${context.pages().indexOf(page)}`).catch(() => null)
      console.log((await page.locator('body').innerText().catch(() => '')).slice(0, 6000))
    }
  if (faults.length > 0) console.log(faults)
  await browser.close()
  process.exit(1)
}
