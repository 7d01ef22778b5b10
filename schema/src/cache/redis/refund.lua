-- Gives back to a day what was taken and not sent after all.
-- KEYS: what the app sent by day. ARGV: the day, messages.
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', math.max(0, tonumber(known) - tonumber(ARGV[2]))))
end
return 0
