#include "worker/worker_link.h"

#include <chrono>
#include <utility>

#include "common/base/check.h"
#include "common/base/log.h"
#include "worker/worker_loop.h"

namespace expertmesh {

WorkerLink::WorkerLink(std::shared_ptr<RowLink> link, Device& device, std::size_t most_row_bytes,
                       std::size_t most_answer_bytes)
    : rows_(most_row_bytes, &device), answer_(most_answer_bytes, &device), link_(std::move(link)) {
  link_->share(rows_.span());
  link_->share(answer_.span());
}

void WorkerLink::poll() {
  RowLink::State const before = link_->state();
  link_->poll(std::chrono::steady_clock::now());
  if (link_->state() == RowLink::State::ready && !std::exchange(was_ready_, true)) spdlog::info("rows come by NCCL");
  if (link_->state() != RowLink::State::failed) return;
  if (was_ready_) throw WorkerLoopError("the rows' link failed: " + link_->failure());
  if (before == RowLink::State::failed) return;
  spdlog::warn("rows come by the host, there is no link: {}", link_->failure());
  link_->abort("", nullptr);
}

std::byte const* WorkerLink::receive(std::size_t bytes) {
  EM_CHECK(bytes <= rows_.size(), bytes << " bytes of rows, room for " << rows_.size());
  while (link_->state() == RowLink::State::connecting) poll();  // the coordinator's end is ready: a matter of moments
  if (link_->state() == RowLink::State::failed)
    throw WorkerLoopError("rows by a link that failed: " + link_->failure());
  link_->recv(rows_.span().first(bytes));
  poll_until_enqueued();
  link_->hold_device();
  return rows_.data();
}

std::byte* WorkerLink::room() {
  return answer_.data();
}

void WorkerLink::send(std::size_t bytes) {
  EM_CHECK(bytes <= answer_.size(), bytes << " bytes of rows, room for " << answer_.size());
  link_->send(answer_.span().first(bytes));
  poll_until_enqueued();
}

void WorkerLink::poll_until_enqueued() {
  while (!link_->enqueued()) {
    poll();
    if (link_->state() == RowLink::State::failed) throw WorkerLoopError("the rows' link failed: " + link_->failure());
  }
}

}  // namespace expertmesh
