"""A study in execution: driver.py has its phases, pool.py its workers, active_run.py the path of one run's records.

worker.py and worker_main.py are the two ends of a worker process, messages.py what they send each other. run_queue.py
hands out runs, confirm.py chooses what trains on fresh seeds, and calibration.py measures what a study leaves open.
"""
