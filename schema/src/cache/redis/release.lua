-- Gives a route up if it still has this epoch.
-- KEYS: the account's routes. ARGV: resource, epoch. Returns 1 if it was given up.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or string.match(held, '|(.*)$') ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
