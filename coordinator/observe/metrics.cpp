#include "coordinator/observe/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <set>
#include <sstream>
#include <utility>

#include "common/base/check.h"

namespace expertmesh {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

constexpr std::size_t kMaxUnknownFields = 64;  // label values; the rest is counted as "other"
constexpr std::size_t kMaxLabelLength = 64;

Histogram::BucketBoundaries seconds_buckets() {
  return {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60};
}

// What may stand in a label as it is.
bool is_plain_name(std::string const& name) {
  return !name.empty() && name.size() <= kMaxLabelLength && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
           c == '-';
  });
}

}  // namespace

struct Metrics::Impl {
  prometheus::Registry registry;
  mutable std::mutex ledger_mutex;  // a scrape sees the six ledger numbers of one moment
  Ledger ledger;

  Gauge& gauge(char const* name, char const* help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
  }
  Counter& counter(char const* name, char const* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
  }
  Histogram& seconds(char const* name, char const* help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, seconds_buckets());
  }

  Gauge& waiting = gauge("expertmesh:num_requests_waiting", "Requests accepted and not yet running");
  Gauge& running = gauge("expertmesh:num_requests_running", "Requests in the running batch");
  Counter& accepted = counter("expertmesh:requests_accepted_total", "Requests taken into the queue");
  Counter& finished = counter("expertmesh:requests_finished_total", "Requests that ended with a finish reason");
  Counter& failed = counter("expertmesh:requests_failed_total", "Requests that ended with an error");
  Counter& cancelled = counter("expertmesh:requests_cancelled_total", "Requests whose client went away");
  Counter& prompt_tokens = counter("expertmesh:prompt_tokens_total", "Prompt tokens computed");
  Counter& generation_tokens = counter("expertmesh:generation_tokens_total", "Tokens sampled");
  Histogram& step = seconds("expertmesh:step_seconds", "Seconds of one engine step");
  Counter& step_tokens = counter("expertmesh:step_tokens_total", "Tokens run through the model, prompt and new");
  Histogram& queue_time = seconds("expertmesh:request_queue_time_seconds", "Seconds from acceptance to the first step");
  Histogram& first_token =
      seconds("expertmesh:time_to_first_token_seconds", "Seconds from acceptance to the first token");
  Histogram& inter_token = seconds("expertmesh:inter_token_latency_seconds", "Seconds between tokens of a request");
  Histogram& request_latency =
      seconds("expertmesh:e2e_request_latency_seconds", "Seconds from acceptance to the last token");
  Counter& preemptions =
      counter("expertmesh:num_preemptions_total", "Times a sequence gave its KV blocks back, to be computed again");
  Counter& prefixes_asked =
      counter("expertmesh:prefix_cache_queries_total", "Tokens of requests that looked for an earlier one's beginning");
  Counter& prefixes_found =
      counter("expertmesh:prefix_cache_hits_total", "Those whose keys and values were there from an earlier request");
  Gauge& kv_usage = gauge("expertmesh:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1");
  Gauge& workers_serving = gauge("expertmesh:workers_serving", "Workers that serve experts");
  Counter& worker_deaths = counter("expertmesh:worker_deaths_total", "Workers that died");
  Recoveries recoveries_seen;
  Counter& recoveries = counter("expertmesh:recoveries_total", "Exchanges of rows that met a worker's death");
  Counter& recovered_rows = counter("expertmesh:recovered_rows_total", "Expert rows asked for again after a death");
  Counter& recovery_seconds =
      counter("expertmesh:recovery_seconds_total", "Seconds from noticing a death to the end of the exchange");
  Counter& recovery_predicted =
      counter("expertmesh:recovery_predicted_seconds_total", "The same, predicted from bytes to load and load rate");
  Counter& own_rows =
      counter("expertmesh:coordinator_expert_rows_total", "Expert rows the coordinator ran for want of a worker");
  Counter& own_loads =
      counter("expertmesh:coordinator_expert_loads_total", "Experts the coordinator loaded for want of a worker");
  std::uint64_t static_seen = 0, repeated_seen = 0, split_seen = 0, graph_seen = 0;
  Counter& static_steps = counter("expertmesh:static_steps_total", "Steps in the static form of the exchange");
  Counter& repeated_steps =
      counter("expertmesh:repeated_steps_total", "Steps begun in the static form and run again, for a worker's death");
  Counter& split_steps = counter("expertmesh:split_steps_total", "Steps that ran as two micro-batches");
  Counter& graph_steps = counter("expertmesh:graph_steps_total", "Decode steps that were one launch, a CUDA graph");
  Gauge& quarantine = gauge("expertmesh:quarantined_bytes", "Message buffers that dead workers still hold");
  Family<Counter>& http = prometheus::BuildCounter()
                              .Name("expertmesh:http_requests_total")
                              .Help("HTTP answers by status")
                              .Register(registry);
  Family<Counter>& unknown_fields = prometheus::BuildCounter()
                                        .Name("expertmesh:unknown_request_fields_total")
                                        .Help("Request fields this server does not know")
                                        .Register(registry);
  std::mutex unknown_mutex;
  std::set<std::string> unknown_seen;
  Family<Counter>& transport = prometheus::BuildCounter()
                                   .Name("expertmesh:transport_bytes_total")
                                   .Help("Bytes of rows exchanged with workers")
                                   .Register(registry);
  std::vector<Counter*> stages, floors;  // in the order of Stage
  struct Layer {
    std::vector<Gauge*> importance, load;
    Gauge* importance_cv2 = nullptr;
    Gauge* load_cv2 = nullptr;
  };
  std::vector<Layer> layers;
  mutable std::mutex balance_mutex;
  std::vector<ExpertBalance> balance;  // what the layers' series say
  std::chrono::steady_clock::time_point const start = std::chrono::steady_clock::now();
};

Metrics::Metrics(std::vector<std::uint32_t> const& moe_layers, std::size_t num_experts)
    : impl_(std::make_shared<Impl>()) {
  auto& stages = prometheus::BuildCounter()
                     .Name("expertmesh:stage_seconds_total")
                     .Help("Seconds of the stages of all steps")
                     .Register(impl_->registry);
  auto& floors =
      prometheus::BuildCounter()
          .Name("expertmesh:stage_floor_seconds_total")
          .Help(
              "Seconds that the stages of all steps take at least, by bytes over bandwidth or operations over "
              "peak; 0: not known")
          .Register(impl_->registry);
  for (std::string_view stage : kStageNames) {
    impl_->stages.push_back(&stages.Add({{"stage", std::string(stage)}}));
    impl_->floors.push_back(&floors.Add({{"stage", std::string(stage)}}));
  }
  auto const family = [&](char const* name, char const* help) -> Family<Gauge>& {
    return prometheus::BuildGauge().Name(name).Help(help).Register(impl_->registry);
  };
  auto& importance = family("expertmesh:expert_importance", "Sum of the gate weights of each expert since start");
  auto& load = family("expertmesh:expert_load", "Tokens routed to each expert since start");
  auto& importance_cv2 =
      family("expertmesh:importance_cv2", "Squared coefficient of variation of the experts' importance");
  auto& load_cv2 = family("expertmesh:load_cv2", "Squared coefficient of variation of the experts' load");
  for (std::uint32_t layer : moe_layers) {
    std::string const l = std::to_string(layer);
    auto& series = impl_->layers.emplace_back();
    series.importance_cv2 = &importance_cv2.Add({{"layer", l}});
    series.load_cv2 = &load_cv2.Add({{"layer", l}});
    impl_->balance.push_back(
        {.layer = layer, .importance = std::vector<double>(num_experts), .load = std::vector<double>(num_experts)});
    for (std::size_t e = 0; e < num_experts; ++e) {
      series.importance.push_back(&importance.Add({{"layer", l}, {"expert", std::to_string(e)}}));
      series.load.push_back(&load.Add({{"layer", l}, {"expert", std::to_string(e)}}));
    }
  }
}

void Metrics::set_ledger(Ledger const& ledger) {
  EM_CHECK(ledger.accepted == ledger.queued + ledger.running + ledger.finished + ledger.failed + ledger.cancelled,
           "accepted " << ledger.accepted << ", queued " << ledger.queued << ", running " << ledger.running
                       << ", finished " << ledger.finished << ", failed " << ledger.failed << ", cancelled "
                       << ledger.cancelled);
  std::lock_guard lock(impl_->ledger_mutex);
  auto const raise = [](Counter& counter, std::uint64_t from, std::uint64_t to) {
    counter.Increment(static_cast<double>(to - from));
  };
  raise(impl_->accepted, impl_->ledger.accepted, ledger.accepted);
  raise(impl_->finished, impl_->ledger.finished, ledger.finished);
  raise(impl_->failed, impl_->ledger.failed, ledger.failed);
  raise(impl_->cancelled, impl_->ledger.cancelled, ledger.cancelled);
  impl_->waiting.Set(static_cast<double>(ledger.queued));
  impl_->running.Set(static_cast<double>(ledger.running));
  impl_->ledger = ledger;
}

Metrics::Ledger Metrics::ledger() const {
  std::lock_guard lock(impl_->ledger_mutex);
  return impl_->ledger;
}

void Metrics::count_prompt_tokens(std::size_t count) {
  impl_->prompt_tokens.Increment(static_cast<double>(count));
}
void Metrics::count_generation_tokens(std::size_t count) {
  impl_->generation_tokens.Increment(static_cast<double>(count));
}
void Metrics::observe_step(double seconds, std::size_t tokens) {
  impl_->step.Observe(seconds);
  impl_->step_tokens.Increment(static_cast<double>(tokens));
}
void Metrics::count_stages(StageTimes const& step) {
  for (std::size_t s = 0; s < kNumStages; ++s) impl_->stages[s]->Increment(step.seconds()[s]);
}
void Metrics::count_floors(StageSeconds const& step) {
  for (std::size_t s = 0; s < kNumStages; ++s) impl_->floors[s]->Increment(step[s]);
}
void Metrics::observe_queue_time(double seconds) {
  impl_->queue_time.Observe(seconds);
}
void Metrics::observe_request(double seconds) {
  impl_->request_latency.Observe(seconds);
}
void Metrics::count_prefixes(std::size_t asked, std::size_t found) {
  impl_->prefixes_asked.Increment(static_cast<double>(asked));
  impl_->prefixes_found.Increment(static_cast<double>(found));
}

void Metrics::count_preemptions(std::size_t count) {
  impl_->preemptions.Increment(static_cast<double>(count));
}
void Metrics::observe_time_to_first_token(double seconds) {
  impl_->first_token.Observe(seconds);
}
void Metrics::observe_inter_token(double seconds) {
  impl_->inter_token.Observe(seconds);
}
void Metrics::set_kv_usage(double share) {
  impl_->kv_usage.Set(share);
}
void Metrics::count_http(int status) {
  impl_->http.Add({{"status", std::to_string(status)}}).Increment();
}

void Metrics::count_unknown_field(std::string const& field) {
  std::string label = is_plain_name(field) ? field : "other";
  {
    std::lock_guard lock(impl_->unknown_mutex);
    if (!impl_->unknown_seen.contains(label) && impl_->unknown_seen.size() >= kMaxUnknownFields) label = "other";
    impl_->unknown_seen.insert(label);
  }
  impl_->unknown_fields.Add({{"field", label}}).Increment();
}

void Metrics::count_worker_death() {
  impl_->worker_deaths.Increment();
}
void Metrics::set_workers_serving(std::size_t count) {
  impl_->workers_serving.Set(static_cast<double>(count));
}

void Metrics::set_recoveries(Recoveries const& now) {
  Recoveries& seen = impl_->recoveries_seen;
  auto const raise = [](Counter& counter, auto from, auto to) { counter.Increment(static_cast<double>(to - from)); };
  raise(impl_->recoveries, seen.exchanges, now.exchanges);
  raise(impl_->recovered_rows, seen.rows, now.rows);
  raise(impl_->recovery_seconds, seen.seconds, now.seconds);
  raise(impl_->recovery_predicted, seen.predicted_seconds, now.predicted_seconds);
  raise(impl_->own_rows, seen.own_rows, now.own_rows);
  raise(impl_->own_loads, seen.own_loads, now.own_loads);
  impl_->quarantine.Set(static_cast<double>(now.quarantined_bytes));
  seen = now;
}

void Metrics::set_static_steps(std::uint64_t good, std::uint64_t lost) {
  impl_->static_steps.Increment(static_cast<double>(good - std::exchange(impl_->static_seen, good)));
  impl_->repeated_steps.Increment(static_cast<double>(lost - std::exchange(impl_->repeated_seen, lost)));
}

void Metrics::set_split_steps(std::uint64_t since_start) {
  impl_->split_steps.Increment(static_cast<double>(since_start - std::exchange(impl_->split_seen, since_start)));
}

void Metrics::set_graph_steps(std::uint64_t since_start) {
  impl_->graph_steps.Increment(static_cast<double>(since_start - std::exchange(impl_->graph_seen, since_start)));
}

void Metrics::count_transport_bytes(std::string const& transport, std::size_t sent, std::size_t received) {
  impl_->transport.Add({{"transport", transport}, {"direction", "sent"}}).Increment(static_cast<double>(sent));
  impl_->transport.Add({{"transport", transport}, {"direction", "received"}}).Increment(static_cast<double>(received));
}

void Metrics::set_balance(std::size_t moe_layer_index, std::vector<double> const& importance,
                          std::vector<double> const& load, double importance_cv2, double load_cv2) {
  auto& series = impl_->layers.at(moe_layer_index);
  EM_CHECK(importance.size() == series.importance.size() && load.size() == series.load.size(),
           importance.size() << " importances and " << load.size() << " loads of " << series.load.size() << " experts");
  for (std::size_t e = 0; e < series.importance.size(); ++e) {
    series.importance[e]->Set(importance[e]);
    series.load[e]->Set(load[e]);
  }
  series.importance_cv2->Set(importance_cv2);
  series.load_cv2->Set(load_cv2);
  std::lock_guard lock(impl_->balance_mutex);
  ExpertBalance& seen = impl_->balance[moe_layer_index];
  seen.importance = importance;
  seen.load = load;
  seen.importance_cv2 = importance_cv2;
  seen.load_cv2 = load_cv2;
}

std::vector<Metrics::ExpertBalance> Metrics::balance() const {
  std::lock_guard lock(impl_->balance_mutex);
  return impl_->balance;
}

Metrics::Activity Metrics::activity() const {
  auto const sum = [](Histogram const& histogram) {
    auto const seen = histogram.Collect();
    return Activity::Sum{.count = seen.histogram.sample_count, .seconds = seen.histogram.sample_sum};
  };
  Activity now;
  now.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - impl_->start).count();
  now.ledger = ledger();
  now.prompt_tokens = impl_->prompt_tokens.Value();
  now.generation_tokens = impl_->generation_tokens.Value();
  now.steps = sum(impl_->step);
  now.time_to_first_token = sum(impl_->first_token);
  now.inter_token = sum(impl_->inter_token);
  for (std::size_t s = 0; s < kNumStages; ++s) {
    now.stages[s] = impl_->stages[s]->Value();
    now.floors[s] = impl_->floors[s]->Value();
  }
  now.kv_usage = impl_->kv_usage.Value();
  now.preemptions = impl_->preemptions.Value();
  now.worker_deaths = impl_->worker_deaths.Value();
  return now;
}

std::string Metrics::serialise() const {
  std::vector<prometheus::MetricFamily> families;
  {
    std::lock_guard lock(impl_->ledger_mutex);
    families = impl_->registry.Collect();
  }
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, families);
  return out.str();
}

}  // namespace expertmesh
