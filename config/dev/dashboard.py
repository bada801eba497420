"""The app `dashboard` of `dormouse dev`: how a learning rate shapes a training run."""

import numpy as np
import pandas as pd
import streamlit as st

STEPS = 200

st.set_page_config(page_title="Training run", page_icon=":material/monitoring:", layout="wide")


@st.cache_data
def losses(learning_rate: float, noise: float) -> pd.DataFrame:
    """Loss by step of gradient descent on a bowl, with noisy gradients: the same inputs give the same curve."""
    random = np.random.default_rng(7)
    steps = np.arange(STEPS)
    decay = np.abs(1 - learning_rate) ** steps
    floor = learning_rate * 0.08
    jitter = random.normal(0, noise, STEPS) * (0.15 + learning_rate)
    training = 2.3 * decay + floor + np.abs(jitter) * 0.5
    validation = training + 0.12 + np.abs(random.normal(0, noise, STEPS)) * 0.3
    return pd.DataFrame({"training": training, "validation": validation}, index=pd.Index(steps, name="step"))


st.title("Training run")
st.caption("Move the sliders: the run is computed again at once.")

controls, chart = st.columns([1, 3], gap="large")

with controls:
    rate = st.slider("Learning rate", 0.01, 1.0, 0.05, step=0.01)
    noise = st.slider("Gradient noise", 0.0, 1.0, 0.3, step=0.05)
    smooth = st.toggle("Smooth the curves", value=True)

run = losses(rate, noise)
shown = run.ewm(span=12).mean() if smooth else run

with controls:
    st.metric("Final training loss", f"{shown['training'].iloc[-1]:.3f}")
    below = run.index[run["training"] < 0.5]
    st.metric("Steps to a loss below 0.5", str(below[0]) if len(below) else "never")

with chart:
    st.line_chart(shown, height=420, x_label="step", y_label="loss")
    st.markdown(f"At a learning rate of **{rate:.2f}** each step keeps **{abs(1 - rate):.0%}** of the error.")
