// What /v1/cluster says: model, numerics profile, limits, and every process of the group.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "coordinator/cluster/cluster.h"
#include "coordinator/death_log.h"
#include "coordinator/text/answer_parser.h"

namespace expertmesh {

// Fixed at start-up and printed there: the bits of an answer depend on these alone.
struct NumericsProfile {
  std::string dtype;  // of weights and activations at the GEMMs: "float32", "bfloat16"; where they are quantised,
                      // of what they were before
  std::string quantization;  // "none", "int8", "int4"
  std::string wire_dtype;    // rows between coordinator and workers
  std::string kv_dtype;
  std::string isa;                     // of the coordinator; "cuda" on a GPU
  std::string expert_isa;              // of the workers
  bool bitwise = true;                 // the same bits whoever runs what: no mixed numerics
  std::string k_order = "sequential";  // order of every sum over K
};

// Layers whose keys and values share a block table.
struct KvGroupLimits {
  std::string kind;  // "full", "window", "chunked"
  std::optional<std::size_t> span_tokens;
  std::size_t layers = 0;
  std::size_t blocks = 0;
  std::size_t bytes = 0;
};

struct ServeLimits {
  std::size_t max_model_len = 0;
  std::size_t max_num_seqs = 0;
  std::size_t max_num_batched_tokens = 0;
  std::size_t max_queued_requests = 0;
  std::size_t max_logprobs = 0;
  std::size_t max_connections = 0;
  std::size_t max_body_bytes = 0;
  std::vector<KvGroupLimits> kv_groups;
  std::size_t kv_block_tokens = 0;
  std::size_t kv_cache_bytes = 0;
  bool prefix_cache = false;
  std::size_t activation_bytes = 0;
  std::size_t shared_bytes = 0;  // most that messages of one worker of this host take
  std::string compute_threads;   // of the coordinator, and where they run
  std::string micro_batches;     // of a step: "1", "2", or "auto": whichever has been faster
};

struct ClusterView {
  std::string model;  // served name
  std::string family;
  NumericsProfile profile;
  ServeLimits limits;
  AnswerFormats answers;     // how chats are read
  WorkerStatus coordinator;  // the same fields as a worker
  std::vector<WorkerStatus> workers;
  std::vector<Death> deaths;  // of workers lately, the last one last
  Cluster::Balance balance;
  std::string not_ready;  // empty if requests can be served
};

std::string to_json(ClusterView const& view);
// One line each, for the log at start-up.
std::vector<std::string> describe(NumericsProfile const& profile, ServeLimits const& limits);

}  // namespace expertmesh
