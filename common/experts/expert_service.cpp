#include "common/experts/expert_service.h"

#include <algorithm>

#include "common/base/check.h"

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
  for (auto const& layer : model.layers)
    out.max_columns = std::max({out.max_columns, layer.hidden, 2 * layer.intermediate});
  return out;
}

ExpertService::ExpertService(ExpertStore const& store, Exec const& exec, ExpertServiceOptions const& options)
    : store_(store), exec_(exec), options_(options), next_(store.num_experts()) {
  std::size_t const max_entries = options.limits.max_entries * options.max_messages;
  std::size_t const max_groups = std::min(max_entries, store.num_experts());
  requests_.reserve(options.max_messages);
  answers_.reserve(options.max_messages);
  hit_.reserve(max_groups);
  groups_.reserve(max_groups);
  offsets_.reserve(max_groups + 1);
  part_groups_.reserve(max_groups);
  part_offsets_.reserve(max_groups + 1);
  in_.resize(max_entries);
  out_.resize(max_entries);
}

std::size_t ExpertService::max_request_bytes() const {
  return DispatchLayout(max_hidden(store_), options_.wire)
      .request_bytes(options_.limits.max_rows, options_.limits.max_entries);
}

std::size_t ExpertService::max_answer_bytes() const {
  return DispatchLayout(max_hidden(store_), options_.wire).answer_bytes(options_.limits.max_entries);
}

void ExpertService::serve(std::span<ServiceCall> calls) {
  EM_CHECK(calls.size() <= options_.max_messages, calls.size() << " messages, at most " << options_.max_messages);
  requests_.clear();
  answers_.clear();
  hit_.clear();
  RequestExpectation const expected{.worker_incarnation = options_.incarnation,
                                    .epoch = options_.epoch,
                                    .wire = options_.wire,
                                    .limits = options_.limits,
                                    .layers = store_.layers()};
  for (ServiceCall& call : calls) {
    auto const parsed = parse_request(call.request, expected);
    if (auto const* error = std::get_if<WireError>(&parsed)) {
      call.error = *error;
      call.attempt = error->id.attempt;
      call.answer_bytes = error->id_known ? DispatchLayout(max_hidden(store_), options_.wire)
                                                .write_answer(call.answer, error->id, error->fault, 0)
                                                .bytes
                                          : 0;
      continue;
    }
    Request const& request = std::get<Request>(parsed);
    DispatchLayout const layout(request.header.hidden, options_.wire);
    requests_.push_back(request);
    answers_.push_back(
        layout.write_answer(call.answer, request.header.id, WireFault::none, request.header.num_entries));
    call.error = {};
    call.attempt = request.header.id.attempt;
    call.answer_bytes = answers_.back().bytes;
    count_entries(request);
  }

  // From counts to the first place of each expert's group.
  groups_.clear();
  offsets_.assign(1, 0);
  for (std::size_t const expert : hit_) {
    groups_.push_back(&store_.expert(expert));
    offsets_.push_back(offsets_.back() + next_[expert]);
    next_[expert] = offsets_[offsets_.size() - 2];
  }
  for (std::size_t i = 0; i < requests_.size(); ++i) place_entries(requests_[i], answers_[i]);
  for (std::size_t const expert : hit_) next_[expert] = 0;
  run_groups();
}

void ExpertService::count_entries(Request const& request) {
  for (DispatchEntry const& entry : request.entries) {
    std::size_t const expert = store_.index(request.layer_index, entry.local_expert);
    if (next_[expert]++ == 0) hit_.push_back(expert);
  }
}

void ExpertService::place_entries(Request const& request, AnswerWriter const& answer) {
  for (std::size_t i = 0; i < request.entries.size(); ++i) {
    DispatchEntry const& entry = request.entries[i];
    std::size_t const place = next_[store_.index(request.layer_index, entry.local_expert)]++;
    in_[place] = request.row(entry.row);
    out_[place] = answer.row(i);
  }
}

// One kernel call for each run of at most exec's rows; a row's bits do not depend on the cut.
void ExpertService::run_groups() {
  std::size_t const total = offsets_.back();
  std::size_t group = 0;
  for (std::size_t begin = 0; begin < total;) {
    std::size_t const end = std::min(total, begin + exec_.limits().max_rows);
    part_groups_.clear();
    part_offsets_.assign(1, 0);
    for (;; ++group) {
      part_groups_.push_back(groups_[group]);
      part_offsets_.push_back(std::min(end, offsets_[group + 1]) - begin);
      if (offsets_[group + 1] >= end) break;  // a group that goes on past the cut is looked at again
    }
    if (offsets_[group + 1] == end) ++group;
    grouped_ffn(exec_, {.groups = part_groups_,
                        .offsets = part_offsets_,
                        .in = {in_.data() + begin, end - begin},
                        .out = {out_.data() + begin, end - begin},
                        .wire = options_.wire});
    begin = end;
  }
}

}  // namespace expertmesh
