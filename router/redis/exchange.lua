-- One exchange of a worker with all others: it tells its news and reads what all have told since its last exchange.
--
-- KEYS: requests (stream), turns (stream), workers (sorted set: name, last seen), number (of this worker's last batch),
--       conditions (hash: offer, JSON), probes (hash: offer, "until worker"), then a hash of spend for each period
--       of a budget.
-- ARGV: this worker, and a JSON document; router/redis/wire.py says what is in it. Amounts are text: Lua's numbers are
--       too short for them.
-- Times are in milliseconds of this server's clock. A batch that comes a second time is not counted again.

local worker, told = ARGV[1], cjson.decode(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local day = 86400000

redis.call('ZADD', KEYS[3], string.format('%.3f', now), worker)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('(%.0f', now - told.gone_ms))
redis.call('PEXPIRE', KEYS[3], day)

for _, spent in ipairs(told.spent) do        -- {number of the key, field, to add, known, milliseconds to keep}
  local key = KEYS[6 + spent[1]]
  if told.raise then                         -- This worker was away, or the server was: nothing that was spent is lost.
    local present = redis.call('HGET', key, spent[2])
    if not present or tonumber(present) < tonumber(spent[4]) then
      redis.call('HSET', key, spent[2], spent[4])
    end
  end
end
if told.number > tonumber(redis.call('GET', KEYS[4]) or 0) then
  redis.call('SET', KEYS[4], told.number, 'PX', day)
  if told.batch then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', told.keep, '*', 'batch', told.batch)
    redis.call('PEXPIRE', KEYS[1], 7 * day)
  end
  for _, spent in ipairs(told.spent) do
    redis.call('HINCRBY', KEYS[6 + spent[1]], spent[2], spent[3])
  end
end
local totals = {}
for number, spent in ipairs(told.spent) do
  totals[number] = redis.call('HGET', KEYS[6 + spent[1]], spent[2]) or '0'
  redis.call('PEXPIRE', KEYS[6 + spent[1]], spent[5])
end

if told.turns then
  local oldest = string.format('%.0f', now - told.warm_ms)
  redis.call('XADD', KEYS[2], 'MINID', '~', oldest, '*', 'turns', told.turns)
  redis.call('PEXPIRE', KEYS[2], told.warm_ms)
end

-- A failure always holds. What is better than before holds only where nobody has said anything else meanwhile.
for _, change in ipairs(told.conditions) do  -- {offer, version that it is based on, is it a failure, condition}
  local offer, present = change[1], redis.call('HGET', KEYS[5], change[1])
  local version = present and cjson.decode(present).version or 0
  if change[3] or version == change[2] then
    change[4].version, change[4].worker = version + 1, worker
    redis.call('HSET', KEYS[5], offer, cjson.encode(change[4]))
    redis.call('HDEL', KEYS[6], offer)
  end
end
redis.call('PEXPIRE', KEYS[5], day)

local may_probe = {}
for _, wish in ipairs(told.probes) do        -- {offer, milliseconds}
  local held_until, holder = string.match(redis.call('HGET', KEYS[6], wish[1]) or '0 ', '^(%d+) (.*)$')
  if holder == worker or tonumber(held_until) <= now then
    redis.call('HSET', KEYS[6], wish[1], string.format('%.0f %s', now + wish[2], worker))
    may_probe[#may_probe + 1] = wish[1]
  end
end
redis.call('PEXPIRE', KEYS[6], day)

return {
  string.format('%.3f', now),
  redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES'),
  redis.call('XRANGE', KEYS[1], '(' .. told.last_batch, '+'),
  redis.call('XRANGE', KEYS[2], '(' .. told.last_turn, '+'),
  totals,
  redis.call('HGETALL', KEYS[5]),
  may_probe,
}
