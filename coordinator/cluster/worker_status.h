// One worker as the control plane and the outside see it.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "common/base/strong_id.h"
#include "common/experts/expert_store.h"

namespace expertmesh {

enum class WorkerState : std::uint8_t { joining, loading, serving, draining, dead, left };
char const* name_of(WorkerState state);

struct WorkerStatus {
  WorkerId id;
  Incarnation incarnation;
  WorkerState state = WorkerState::joining;
  std::int64_t pid = 0;  // 0 until hello
  std::string host;
  bool remote = false;                        // came by itself
  std::string device;                         // "cpu"
  std::string isa;                            // as the worker reported it
  std::string dtype;                          // weights: "float32", "bfloat16", "int8"
  std::string transport;                      // of messages: "shm", "mpi", or "mpi" and why not the other
  std::string row_transport;                  // of the rows: as their messages, "nccl", or "host" and why not that
  std::size_t num_experts = 0;                // held, all layers together
  std::shared_ptr<HeldExperts const> held{};  // which ones
  std::size_t resident_bytes = 0;
  std::optional<double> bytes_per_second;                  // that it reads weights with; none: not known yet
  std::size_t room = 0;                                    // experts of every layer that its memory takes, likewise
  double speed = 1;                                        // relative to the others, as far as it matters
  std::optional<std::chrono::milliseconds> heartbeat_age;  // while it lives
  std::string death_reason;  // of the last life that ended before its time; empty if there was none
};

}  // namespace expertmesh
