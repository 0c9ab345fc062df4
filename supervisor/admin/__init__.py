"""The operator's API on admin.sock: framed msgpack, one handler file per noun."""
