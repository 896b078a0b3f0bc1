"""What lies where, and whether there is room."""
import math

RUNTIME_SHARE = 0.05  # of a device's memory, for buffers and activations


def coordinator_bytes(model, split, workload, sequences):
    """Of each: its weights, its share of the sequences at their full length, and the experts where there are no workers"""
    each = math.ceil(sequences / split.coordinators)
    experts = model.expert_bytes(0) if split.workers == 0 else 0
    return model.coordinator_bytes + experts + each * model.sequence_bytes(workload.input_len + workload.output_len)


def worker_bytes(model, split):
    """Of the one that holds most"""
    return sum(layer.count * layer.expert.bytes * -(-(layer.experts + split.redundant) // min(split.workers, layer.experts + split.redundant))
               for layer in model.layers if layer.experts) if split.workers else 0


def room(device):
    return (1 - RUNTIME_SHARE) * device.memory


def most_sequences(model, split, workload, coordinator):
    """That the coordinators' caches have room for; 0: not even the weights fit"""
    left = room(coordinator) - coordinator_bytes(model, split, workload, 0)
    each = model.sequence_bytes(workload.input_len + workload.output_len)
    return 0 if left <= 0 else split.coordinators * int(left / each) if each else 10**9


def workers_fit(system, split):
    """Workers of several kinds hold experts by their room; together they need to have it."""
    if split.workers == 0:
        return True
    devices = system.workers_of(split.workers)
    needed = worker_bytes(system.model, split)
    if len(devices) == 1:
        return needed <= room(devices[0][0])
    return system.model.expert_bytes(split.redundant) <= sum(count * room(device) for device, count in devices)
