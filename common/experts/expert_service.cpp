#include "common/experts/expert_service.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/protocol/step_layout.h"

namespace expertmesh {
namespace {

// Enough rows to keep every core busy through an expert's weights, few enough to keep the kernels' scratch small.
constexpr std::size_t kMaxKernelRows = 2048;

std::size_t max_hidden(ExpertStore const& store) {
  std::size_t hidden = 0;
  for (auto const& layer : store.layers()) hidden = std::max(hidden, layer.hidden);
  return hidden;
}

}  // namespace

ExecLimits ExpertService::exec_limits(ExpertModelSpec const& model, DispatchLimits const& limits,
                                      std::size_t max_messages) {
  ExecLimits out{.max_rows = std::min(kMaxKernelRows, limits.max_entries * max_messages), .max_columns = 0};
  for (auto const& layer : model.layers) {
    out.max_columns = std::max({out.max_columns, layer.hidden, 2 * layer.intermediate});
    out.max_hidden = std::max(out.max_hidden, layer.hidden);
    out.max_intermediate = std::max(out.max_intermediate, layer.intermediate);
  }
  return out;
}

ExpertService::ExpertService(ExpertStore const& store, Exec const& exec, ExpertServiceOptions const& options)
    : store_(store), exec_(exec), options_(options) {
  if (!options.port) return;
  for (std::size_t i = 0; i < store.layers().size(); ++i) {
    std::vector<DeviceExpert> table;
    for (std::size_t e = 0; e < store.layers()[i].num_experts; ++e) table.push_back(on_device(store.expert(i, e)));
    tables_.emplace_back(std::span<DeviceExpert const>(table), exec.device());
  }
  entry_rows_.reserve(options.limits.max_entries);
  entry_experts_.reserve(options.limits.max_entries);
}

std::size_t ExpertService::max_request_bytes() const {
  return std::max(DispatchLayout(max_hidden(store_), options_.wire)
                      .request_bytes(options_.limits.max_rows, options_.limits.max_entries),
                  step_message_bytes(store_.layers().size()));
}

std::size_t ExpertService::max_answer_bytes() const {
  return DispatchLayout(max_hidden(store_), options_.wire).answer_bytes(options_.limits.max_entries);
}

void refuse(ServiceCall& call, WireError const& error, DispatchLayout const& layout) {
  call.error = error;
  call.attempt = error.id.attempt;
  call.answer_bytes = error.id_known ? layout.write_answer(call.answer, error.id, error.fault, 0).bytes : 0;
}

ServiceBatch ExpertService::make_batch(ServiceBatchLimits const& limits) const {
  return {exec_, options_.wire, store_.num_in_model(), limits};
}

void ExpertService::admit(ServiceCall& call, ServiceBatch& batch) {
  RequestExpectation const expected{.worker_incarnation = options_.incarnation,
                                    .epoch = options_.epoch,
                                    .wire = options_.wire,
                                    .limits = options_.limits,
                                    .layers = store_.layers(),
                                    .rows_apart = options_.port != nullptr};
  auto const parsed = parse_request(call.request, expected);
  if (auto const* error = std::get_if<WireError>(&parsed))
    return refuse(call, *error, DispatchLayout(max_hidden(store_), options_.wire));
  Request const& request = std::get<Request>(parsed);
  AnswerWriter const answer =
      DispatchLayout(request.header.hidden, options_.wire)
          .write_answer(call.answer, request.header.id, WireFault::none, request.header.num_entries);
  call.error = {};
  call.attempt = request.header.id.attempt;
  call.answer_bytes = answer.bytes;
  if (request.rows)
    batch.add(request, answer, store_);
  else
    serve_apart(request);
}

void ExpertService::finish(ServiceCall const& call, ServiceBatch const& batch) {
  if (call.answer_bytes == 0) return;
  std::span<std::byte> const answer = call.answer.first(call.answer_bytes);
  set_times(answer, batch.begin_ns(), batch.end_ns());
  seal(answer);
}

void ExpertService::serve(std::span<ServiceCall> calls, ServiceBatch& batch) {
  batch.clear();
  for (ServiceCall& call : calls) admit(call, batch);
  batch.run();
  for (ServiceCall const& call : calls) finish(call, batch);
}

void ExpertService::serve_apart(Request const& request) {
  entry_rows_.clear();
  entry_experts_.clear();
  for (DispatchEntry const& entry : request.entries) {
    entry_rows_.push_back(entry.row);
    entry_experts_.push_back(entry.local_expert);
  }
  FfnWeights const& any = store_.expert(request.layer_index, entry_experts_.front());
  std::byte const* const rows = options_.port->receive(request.header.num_rows * request.row_bytes);
  experts_on_device(exec_, layer_on_device(any, tables_[request.layer_index].span(), options_.wire), entry_rows_,
                    entry_experts_, rows, options_.port->room());
  options_.port->send(request.header.num_entries * request.row_bytes);
}

}  // namespace expertmesh
