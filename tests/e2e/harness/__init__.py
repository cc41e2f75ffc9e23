"""What the end-to-end tests are made of: processes, ports, clients, a cluster, proxies, chat servers, relays, load.

Nothing here sleeps to synchronise: a process is waited for by a line of its log, a reply by its bytes, a state by
asking for it until it holds (wait_for, the only place that pauses).
"""
