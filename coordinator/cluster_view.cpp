#include "coordinator/cluster_view.h"

#include <spdlog/fmt/fmt.h>

#include <nlohmann/json.hpp>

#include "coordinator/load_progress.h"
#include "coordinator/text/json_text.h"

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;

Json process_json(WorkerStatus const& w) {
  Json j = {{"id", w.id.value()},
            {"pid", w.pid},
            {"host", w.host},
            {"remote", w.remote},
            {"state", name_of(w.state)},
            {"incarnation", w.incarnation.value()},
            {"device", w.device},
            {"isa", w.isa},
            {"dtype", w.dtype},
            {"transport", w.transport},
            {"row_transport", w.row_transport},
            {"experts", w.num_experts},
            {"resident_bytes", w.resident_bytes},
            {"speed", w.speed}};
  if (w.bytes_per_second) {
    j["capacity"] = *w.bytes_per_second / 1e9;
    j["room"] = w.room;
  }
  if (w.heartbeat_age) j["heartbeat_age_ms"] = w.heartbeat_age->count();
  if (!w.death_reason.empty()) j["death_reason"] = w.death_reason;
  return j;
}

Json death_json(Death const& d) {
  auto const ago = std::chrono::steady_clock::now() - d.when;
  return {{"worker", d.worker.value()},
          {"incarnation", d.incarnation.value()},
          {"pid", d.pid},
          {"host", d.host},
          {"reason", d.reason},
          {"seconds_ago", std::chrono::duration<double>(ago).count()}};
}

Json kv_group_json(KvGroupLimits const& g) {
  return {{"kind", g.kind},
          {"span_tokens", g.span_tokens ? Json(*g.span_tokens) : Json(nullptr)},
          {"layers", g.layers},
          {"blocks", g.blocks},
          {"bytes", g.bytes}};
}

// "640 blocks for 12 layers (window of 128)"
std::string describe(KvGroupLimits const& g) {
  std::string const span = g.span_tokens ? " of " + std::to_string(*g.span_tokens) : "";
  return std::to_string(g.blocks) + " blocks for " + std::to_string(g.layers) + " layers (" + g.kind + span + ")";
}

}  // namespace

std::string to_json(ClusterView const& view) {
  auto const& p = view.profile;
  auto const& l = view.limits;
  std::size_t num_blocks = 0;
  for (auto const& g : l.kv_groups) num_blocks += g.blocks;
  Json j = {{"model", view.model},
            {"family", view.family},
            {"ready", view.not_ready.empty()},
            {"not_ready_reason", view.not_ready.empty() ? Json(nullptr) : Json(view.not_ready)},
            {"profile",
             {{"dtype", p.dtype},
              {"quantization", p.quantization},
              {"wire_dtype", p.wire_dtype},
              {"kv_dtype", p.kv_dtype},
              {"isa", p.isa},
              {"expert_isa", p.expert_isa},
              {"bitwise_identity", p.bitwise},
              {"k_order", p.k_order}}},
            {"limits",
             {{"max_model_len", l.max_model_len},
              {"max_num_seqs", l.max_num_seqs},
              {"max_num_batched_tokens", l.max_num_batched_tokens},
              {"max_queued_requests", l.max_queued_requests},
              {"max_logprobs", l.max_logprobs},
              {"max_connections", l.max_connections},
              {"max_body_bytes", l.max_body_bytes},
              {"kv_blocks", num_blocks},
              {"kv_groups", Json::array()},
              {"kv_block_tokens", l.kv_block_tokens},
              {"kv_cache_bytes", l.kv_cache_bytes},
              {"prefix_cache", l.prefix_cache},
              {"activation_bytes", l.activation_bytes},
              {"shared_bytes", l.shared_bytes},
              {"compute_threads", l.compute_threads},
              {"micro_batches", l.micro_batches}}},
            {"answers", {{"tool_call_parser", view.answers.tool_calls}, {"reasoning_parser", view.answers.reasoning}}},
            {"coordinator", process_json(view.coordinator)},
            {"workers", Json::array()},
            {"deaths", Json::array()}};
  for (auto const& g : l.kv_groups) j["limits"]["kv_groups"].push_back(kv_group_json(g));
  for (auto const& w : view.workers) j["workers"].push_back(process_json(w));
  for (auto const& d : view.deaths) j["deaths"].push_back(death_json(d));
  j["placement"] = {{"moves", view.balance.num_moves},
                    {"experts_moved", view.balance.experts_moved},
                    {"moving", view.balance.moving},
                    {"imbalance_before_last_move", view.balance.before},
                    {"imbalance_after_last_move", view.balance.after}};
  return dumped(j);
}

std::vector<std::string> describe(NumericsProfile const& p, ServeLimits const& l) {
  std::string groups;
  for (auto const& g : l.kv_groups) groups += (groups.empty() ? "" : ", ") + describe(g);
  return {
      fmt::format(
          "numerics profile: dtype {}, quantization {}, wire {}, KV cache {}, kernels {}, of experts {}, K-order {}{}",
          p.dtype, p.quantization, p.wire_dtype, p.kv_dtype, p.isa, p.expert_isa, p.k_order,
          p.bitwise ? "" : "; mixed numerics: bits depend on who runs what"),
      fmt::format(
          "limits: {} tokens a sequence, {} sequences, {} tokens a step (micro-batches: {}), {} queued requests, {} "
          "log-probabilities",
          l.max_model_len, l.max_num_seqs, l.max_num_batched_tokens, l.micro_batches, l.max_queued_requests,
          l.max_logprobs),
      fmt::format("limits: {} connections, {} a request body", l.max_connections, human_bytes(l.max_body_bytes)),
      fmt::format("memory: KV cache {}; blocks of {} tokens, {}{}; activations {}{}", groups, l.kv_block_tokens,
                  human_bytes(l.kv_cache_bytes), l.prefix_cache ? ", kept for requests that begin alike" : "",
                  human_bytes(l.activation_bytes),
                  l.shared_bytes == 0 ? "" : "; at most " + human_bytes(l.shared_bytes) + " shared with a worker")};
}

}  // namespace expertmesh
