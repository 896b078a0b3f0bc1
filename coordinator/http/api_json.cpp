#include "coordinator/http/api_json.h"

#include <nlohmann/json.hpp>

#include "coordinator/text/json_text.h"

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;

Json model_json(ApiModel const& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "expertmesh"},
          {"max_model_len", model.max_model_len}};
}

}  // namespace

std::string error_body(ApiError const& e) {
  return dumped(Json{{"error",
                      {{"message", e.message},
                       {"type", e.type},
                       {"param", e.param ? Json(*e.param) : Json(nullptr)},
                       {"code", e.code ? Json(*e.code) : Json(nullptr)}}}});
}

HttpResponse error_response(ApiError const& error) {
  HttpResponse response{.status = error.status, .body = error_body(error), .headers = {}};
  if (error.retry_after_s) response.headers.emplace_back("Retry-After", std::to_string(*error.retry_after_s));
  return response;
}

std::string models_body(ApiModel const& model) {
  return dumped(Json{{"object", "list"}, {"data", Json::array({model_json(model)})}});
}
std::string model_body(ApiModel const& model) {
  return dumped(model_json(model));
}
std::string version_body(std::string const& version) {
  return dumped(Json{{"version", version}});
}

std::string activity_body(Metrics::Activity const& now) {
  auto const sum = [](Metrics::Activity::Sum const& s) { return Json{{"count", s.count}, {"seconds", s.seconds}}; };
  auto const by_stage = [](StageSeconds const& seconds) {
    Json stages = Json::object();
    for (std::size_t s = 0; s < kNumStages; ++s) stages[std::string(kStageNames[s])] = seconds[s];
    return stages;
  };
  return dumped(Json{{"seconds", now.seconds},
                     {"requests",
                      {{"accepted", now.ledger.accepted},
                       {"queued", now.ledger.queued},
                       {"running", now.ledger.running},
                       {"finished", now.ledger.finished},
                       {"failed", now.ledger.failed},
                       {"cancelled", now.ledger.cancelled}}},
                     {"prompt_tokens", now.prompt_tokens},
                     {"generation_tokens", now.generation_tokens},
                     {"steps", sum(now.steps)},
                     {"time_to_first_token", sum(now.time_to_first_token)},
                     {"inter_token", sum(now.inter_token)},
                     {"stage_seconds", by_stage(now.stages)},
                     {"stage_floor_seconds", by_stage(now.floors)},
                     {"kv_usage", now.kv_usage},
                     {"preemptions", now.preemptions},
                     {"worker_deaths", now.worker_deaths}});
}

}  // namespace expertmesh
