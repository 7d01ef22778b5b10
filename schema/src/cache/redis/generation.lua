-- Which life of the cache this is. It ends with the data, and with the server's process: a server that starts again may have
-- lost the last writes, or have them from an old snapshot.
-- KEYS: the generation. ARGV: a new generation, the server's run, 1 to begin the new one in any case.
local held = redis.call('HMGET', KEYS[1], 'id', 'run')
if held[1] and held[2] == ARGV[2] and ARGV[3] ~= '1' then return held[1] end
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'run', ARGV[2])
return ARGV[1]
