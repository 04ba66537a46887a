// SPDX-License-Identifier: Apache-2.0
// Times of launches as a decode step makes them: in a replayed CUDA graph of many, one after another.
#pragma once
#include "common.h"

namespace bench {

class Graph {
 public:
  Graph(const Gpu& gpu, const std::function<void()>& body) : stream_(gpu.stream()) {
    BENCH_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    body();
    cudaGraph_t graph = nullptr;
    BENCH_CHECK(cudaStreamEndCapture(stream_, &graph));
    BENCH_CHECK(cudaGraphInstantiate(&graph_, graph, 0));
    BENCH_CHECK(cudaGraphDestroy(graph));
    for (cudaEvent_t& event : events_) BENCH_CHECK(cudaEventCreate(&event));
  }
  Graph(const Graph&) = delete;
  ~Graph() {
    cudaGraphExecDestroy(graph_);
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  // The first replay keeps the GPU busy while the host submits what is timed.
  double replay_us() {
    float ms = 0;
    BENCH_CHECK(cudaGraphLaunch(graph_, stream_));
    BENCH_CHECK(cudaEventRecord(events_[0], stream_));
    BENCH_CHECK(cudaGraphLaunch(graph_, stream_));
    BENCH_CHECK(cudaEventRecord(events_[1], stream_));
    BENCH_CHECK(cudaStreamSynchronize(stream_));
    BENCH_CHECK(cudaEventElapsedTime(&ms, events_[0], events_[1]));
    return 1e3 * ms;
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t events_[2] = {};
};

// Times of one launch in us: `body(i)` issues launch i of a graph of so many.
inline std::vector<double> replay_times_us(const Gpu& gpu, int launches, const std::function<void(int)>& body,
                                           int repeats = 15) {
  Graph graph(gpu, [&] {
    for (int i = 0; i < launches; ++i) body(i);
  });
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) times.push_back(graph.replay_us() / launches);
  return times;
}

}  // namespace bench
