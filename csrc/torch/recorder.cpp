// SPDX-License-Identifier: Apache-2.0
// Programs of the CPU backend (pe/parallel.h) behind integer handles. A program owns, besides its ops, every tensor
// that they touch, so that Python may drop its temporaries: the pointers frozen in the program stay valid until
// record_free.
#include "torch/recorder.h"

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "pe/parallel.h"

namespace pe::torch_ops {
namespace {

struct Recording {
  cpu::Program program;
  std::vector<Tensor> tensors;
  bool open = true;
};

std::mutex mutex;
std::map<int64_t, std::shared_ptr<Recording>> recordings;
int64_t next_handle = 1;
thread_local Recording* current = nullptr;

std::shared_ptr<Recording> find(const char* op, int64_t handle) {
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = recordings.find(handle);
  PE_CHECK(op, found != recordings.end(), "no program has the handle " + std::to_string(handle) + "; was it freed?");
  return found->second;
}

}  // namespace

void keep_alive(const Tensor& tensor) {
  if (current != nullptr) current->tensors.push_back(tensor);
}

int64_t record_begin() {
  PE_CHECK("record_begin", current == nullptr, "this thread is already recording; end that program first");
  auto recording = std::make_shared<Recording>();
  current = recording.get();
  cpu::begin_recording(&recording->program);
  std::lock_guard<std::mutex> lock(mutex);
  recordings[next_handle] = std::move(recording);
  return next_handle++;
}

void record_end(int64_t handle) {
  const auto recording = find("record_end", handle);
  PE_CHECK("record_end", recording.get() == current,
           "program " + std::to_string(handle) + " is not the one this thread records");
  cpu::end_recording();
  recording->open = false;
  current = nullptr;
}

void record_replay(int64_t handle) {
  const auto recording = find("record_replay", handle);
  PE_CHECK("record_replay", !recording->open, "program " + std::to_string(handle) + " is still being recorded");
  recording->program.replay();
}

void record_free(int64_t handle) {
  const auto recording = find("record_free", handle);
  PE_CHECK("record_free", !recording->open, "program " + std::to_string(handle) + " is still being recorded");
  std::lock_guard<std::mutex> lock(mutex);
  recordings.erase(handle);
}

}  // namespace pe::torch_ops
